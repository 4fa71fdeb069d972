import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from serveprune.config.model import ExportedProgramSource
from serveprune.errors import InvalidArgument
from serveprune.graph.export import export_graph, first_reason, quiet_frameworks
from serveprune.graph.exported_program_archive import check_archive
from serveprune.graph.probe import ProbeInput, axis_assignment, generate_feeds
from serveprune.graph.source_graph import SourceGraph
from serveprune.graph.torch_program import output_names, probe_program
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_DATATYPES = {
    torch.bool: Datatype.BOOL,
    torch.uint8: Datatype.UINT8,
    torch.int8: Datatype.INT8,
    torch.int16: Datatype.INT16,
    torch.int32: Datatype.INT32,
    torch.int64: Datatype.INT64,
    torch.float16: Datatype.FP16,
    torch.float32: Datatype.FP32,
    torch.float64: Datatype.FP64,
}


def read_exported_program_source(
    source: ExportedProgramSource, *, progress: Callable[[str, float], None]
) -> SourceGraph:
    """Load a `.pt2` and export it, with the dynamic axes it was saved with.

    Raises:
        InvalidArgument: It is no exported program of tensors, or holds pickled objects or code.
        BuildFailed: The program cannot be expressed as ONNX.
    """
    path = Path(source.pt2)
    label = path.name
    program = _load(path)
    inputs = _inputs(program, label=label)
    symbols = _symbols(program)
    progress("computing reference outputs", 0.15)

    def feeds(batch: int, size: int) -> dict[str, Array]:
        return generate_feeds(_sized(inputs, symbols, batch=batch, size=size), batch=batch, size=size)

    probe = probe_program(program.module(check_guards=False), feeds, label=label)
    progress("exporting to ONNX", 0.2)
    graph, notes = export_graph(
        program, label=label, input_names=tuple(inputs), output_names=output_names((), count=probe.outputs, label=label)
    )
    return SourceGraph(label=label, model=graph, references=probe.references, notes=notes)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make every ``torch.load`` in this process refuse pickled objects, also those that ask for them."""
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = before


def _load(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise InvalidArgument(f"{path.name}: there is no such file at {path}")
    check_archive(path)
    try:
        with quiet_frameworks(), _weights_only():
            program = torch.export.load(path)
    except Exception as error:  # torch raises dozens of unrelated types for archives it cannot read
        raise InvalidArgument(f"{path.name}: torch cannot load this program: {first_reason(error)}") from error
    # Guards are source text that torch would execute; shapes are checked against the graph anyway.
    program._guards_code = []
    return program


def _inputs(program: torch.export.ExportedProgram, *, label: str) -> dict[str, torch.Tensor]:
    """Return the example value of each input; its sizes may be symbolic."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = {}
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        if not isinstance(value, torch.Tensor) or value.dtype not in _DATATYPES or value.dim() == 0:
            raise InvalidArgument(
                f"{label}: input {name!r}: expected a tensor of plain numbers with the batch as its first axis, "
                f"got {value!r}"
            )
        inputs[str(name)] = value
    if not inputs:
        raise InvalidArgument(f"{label}: expected a program with at least one input, got none")
    return inputs


def _symbols(program: torch.export.ExportedProgram) -> Mapping[str, tuple[int, int]]:
    """Return the smallest and largest size of each dynamic axis."""
    return {
        str(symbol): (_bound(limits.lower), _bound(limits.upper))
        for symbol, limits in program.range_constraints.items()
    }


def _bound(limit: Any) -> int:
    try:
        return int(limit)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return 2**31  # torch's own infinity


def _sized(
    inputs: Mapping[str, torch.Tensor], symbols: Mapping[str, tuple[int, int]], *, batch: int, size: int
) -> tuple[ProbeInput, ...]:
    """Give every symbolic axis a size within the program's bounds."""
    shapes = [tuple(_symbol_or_size(axis) for axis in value.shape) for value in inputs.values()]
    plain = [tuple(axis for axis in shape if isinstance(axis, int) or axis in symbols) for shape in shapes]
    wanted = axis_assignment(plain, batch=batch, size=size)
    free = {name: min(wanted.get(name, size), high) for name, (low, high) in symbols.items()}
    return tuple(
        ProbeInput(name, _DATATYPES[value.dtype], tuple(_resolved(axis, free) for axis in value.shape))
        for name, value in inputs.items()
    )


def _symbol_or_size(axis: int | torch.SymInt) -> int | str:
    return axis if isinstance(axis, int) else str(axis.node.expr)


def _resolved(axis: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    expression = axis.node.expr
    return int(expression.subs({symbol: sizes[str(symbol)] for symbol in expression.free_symbols}))
