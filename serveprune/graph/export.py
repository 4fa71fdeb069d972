"""From a torch module or exported program to a graph in memory, without the exporter's chatter."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch

from serveprune.errors import BuildFailed
from serveprune.graph.names import repair_names
from serveprune.graph.simplification import simplify

OPSET = 20
"""The first in which Gelu is one node, which ONNX Runtime fuses with its neighbours."""

_REASON_LINES = 3
_CHATTERING_LOGGERS = (
    "torch.onnx",
    "torch.export",
    "torch._export",
    "torch.fx",
    "transformers",
    "onnxscript",
    "onnx_ir",
)


@contextmanager
def quiet_frameworks() -> Iterator[None]:
    """Silence the warnings and log lines of torch and transformers; their errors still come through."""
    loggers = [logging.getLogger(name) for name in _CHATTERING_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export_graph(
    program: torch.nn.Module | torch.export.ExportedProgram,
    *,
    label: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> tuple[ir.Model, tuple[str, ...]]:
    """Export to ONNX, simplify, and repair repeated names.

    Args:
        program: In evaluation mode.
        label: How messages name the source.
        input_names: One per input, in order of the program's parameters.
        output_names: One per output.
        args: Positional example inputs.
        kwargs: Example inputs by name.
        dynamic_shapes: As ``torch.onnx.export`` takes them: per input, axis -> name.

    Returns:
        The graph and notes on what was repaired.

    Raises:
        BuildFailed: The exporter cannot express the model; the message holds its reason.
    """
    _forget_recurrent_kernels()
    try:
        with quiet_frameworks(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                args,
                kwargs=dict(kwargs) if kwargs else None,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                optimize=False,
                verbose=False,
            )
            assert exported is not None
            model = exported.model
            notes = repair_names(model)
            simplify(model)
            _name_interface(model, input_names, output_names)
    except Exception as error:  # the exporter raises dozens of unrelated types, also from inside the model
        raise BuildFailed(f"{label}: cannot be exported to ONNX: {first_reason(error)}") from error
    return model, (*notes, *repair_names(model))


def first_reason(error: BaseException) -> str:
    """Return the first lines of the error at the bottom of a chain, which says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:_REASON_LINES])}"


def _name_interface(model: ir.Model, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    # Where an output is an input, or one value is two outputs, the exporter's names end up on the wrong one.
    for value, name in zip(model.graph.inputs, input_names, strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, output_names, strict=True):
        value.name = name


def _forget_recurrent_kernels() -> None:
    """Let the exporter see LSTM and GRU afresh.

    It swaps their kernels for ones that keep a dynamic sequence axis, but torch remembers the kernel of
    the first export (seen with torch 2.13), so every later export in a process would fix the axis.
    """
    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        getattr(operator, "_dispatch_cache", {}).clear()
