"""The weights that may be removed: matrices and filters that are summed over."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from serveprune.config.lottery import LotteryOptions
from serveprune.errors import InvalidArgument
from serveprune.graph.executor.constants import Role, role_of
from serveprune.graph.node import operator

FILTERED = ("Conv", "ConvTranspose", "com.microsoft::FusedConv")
MULTIPLIED = ("Gemm", "MatMul", "com.microsoft::FusedMatMul", "com.microsoft::FusedGemm")
RECURRENT = ("LSTM", "GRU", "RNN")
_CARRIERS = ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Slice", "Split")
_MATRIX_RANK = 2


def readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the nodes that compute with a constant, and the slots it reaches, whatever brings it there."""
    found: list[tuple[ir.Node, int]] = []
    for node, slot in value.uses():
        if operator(node) in _CARRIERS:
            found += [use for output in node.outputs for use in readers(output)]
        else:
            found.append((node, slot))
    return found


def prunable_weights(model: ir.Model, options: LotteryOptions) -> tuple[str, ...]:
    """Return the names of the weights that may be removed, in the order in which the graph reads them.

    Raises:
        InvalidArgument: There are none.
    """
    layers = [name for name, value in _in_order(model.graph) if _is_layer(value)]
    ends = {"first": layers[:1], "last": layers[-1:]}
    left_out = {name for which in options.leave_out for name in ends[which]}
    chosen = [
        name for name in layers if name not in left_out and not _ignored(model.graph.initializers[name], options.ignore)
    ]
    if not chosen:
        told = ", ".join(layers) or "none"
        raise InvalidArgument(
            f"lottery: expected matrices or filters to remove weights from, got none; in the graph are: {told}; "
            "look at leave_out and ignore"
        )
    return tuple(chosen)


def _in_order(graph: ir.Graph) -> list[tuple[str, ir.Value]]:
    places = {id(node): place for place, node in enumerate(graph)}
    found = []
    for name, value in graph.initializers.items():
        uses = [places[id(node)] for node, _ in readers(value) if id(node) in places]
        if uses:
            found.append((min(uses), name, value))
    return [(name, value) for _, name, value in sorted(found, key=lambda each: each[:2])]


def _is_layer(value: ir.Value) -> bool:
    assert value.const_value is not None
    summed = any(operator(node) in (*FILTERED, *MULTIPLIED, *RECURRENT) for node, _ in readers(value))
    return summed and len(value.const_value.shape) >= _MATRIX_RANK and role_of(value) is Role.WEIGHT


def _ignored(value: ir.Value, patterns: Sequence[str]) -> bool:
    names = (value.name or "", *(node.name or "" for node, _ in readers(value)))
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
