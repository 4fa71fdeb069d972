import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from serveprune.config.model import TorchSource
from serveprune.errors import InvalidArgument
from serveprune.graph.export import export_graph, first_reason
from serveprune.graph.probe import ProbeInput, generate_feeds
from serveprune.graph.source_graph import SourceGraph
from serveprune.graph.torch_program import output_names, probe_program
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array

_EXPORT_BATCH = 2
_SEED = 0


def read_torch_source(source: TorchSource, *, progress: Callable[[str, float], None]) -> SourceGraph:
    """Call a factory, load its weights, and export the module.

    Raises:
        InvalidArgument: The factory cannot be imported or called, or the weights or inputs do not fit.
        BuildFailed: The module cannot be expressed as ONNX.
    """
    label = source.torch
    inputs = tuple(ProbeInput(given.name, Datatype.parse(given.datatype), given.shape) for given in source.inputs)
    module = _module(source)
    progress("computing reference outputs", 0.15)

    def feeds(batch: int, size: int) -> dict[str, Array]:
        return generate_feeds(inputs, batch=batch, size=size)

    probe = probe_program(module, feeds, label=label)
    progress("exporting to ONNX", 0.2)
    example = feeds(_EXPORT_BATCH, probe.size)
    graph, notes = export_graph(
        module,
        label=label,
        args=tuple(torch.from_numpy(array) for array in example.values()),
        input_names=[value.name for value in inputs],
        output_names=output_names(source.outputs, count=probe.outputs, label=label),
        dynamic_shapes=tuple(_dynamic_axes(value.shape) for value in inputs),
    )
    return SourceGraph(label=label, model=graph, references=probe.references, notes=notes)


def _dynamic_axes(shape: tuple[int | str, ...]) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """Let modules in the working directory be imported first, as `python -m` does and the artifact key assumes."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _module(source: TorchSource) -> nn.Module:
    module_name, _, function_name = source.torch.partition(":")
    with _importable_from_here():
        try:
            factory = getattr(importlib.import_module(module_name), function_name)
            # Weights that the factory draws would otherwise differ from import to import.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                module = factory()
        except Exception as error:  # the factory is the user's code
            raise InvalidArgument(
                f"{source.torch}: the factory cannot be imported and called: {first_reason(error)}; it has to be "
                "importable from the installed packages or the working directory, and take no arguments"
            ) from error
    if not isinstance(module, nn.Module):
        raise InvalidArgument(f"{source.torch}: expected a torch.nn.Module, got {type(module).__name__}")
    if source.weights is not None:
        _load_weights(module, source.weights, label=source.torch)
    return module.cpu().eval()


def _load_weights(module: nn.Module, path: Path, *, label: str) -> None:
    state = _state_dict(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidArgument(
            f"{label}: the weights in {path.name} do not fit the module: {first_reason(error)}"
        ) from error


def _state_dict(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InvalidArgument(f"weights {path}: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise InvalidArgument(f"weights {path.name}: cannot be read as safetensors: {error}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for files it refuses
        raise InvalidArgument(
            f"weights {path.name}: expected safetensors or a state dict of plain tensors; anything else in a pickle is "
            f"refused, for it could run code: {first_reason(error)}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InvalidArgument(f"weights {path.name}: expected a state dict, name -> tensor, got {type(state).__name__}")
    return state
