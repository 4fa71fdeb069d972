"""What a constant of a graph is for: something learned, something the graph was told, or running statistics."""

from enum import Enum, auto

import numpy as np
import onnx_ir as ir

from serveprune.graph.executor.table import OPERATORS
from serveprune.graph.node import constant, operator

_CARRIERS = ("Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Concat", "Slice", "Split")
"""Operators that only bring a weight into another form."""

_BROADCASTING = ("Add", "Mul")

_SPREADING = (*_CARRIERS, "Mul", "MatMul", "Einsum", "Expand", "Tile")
"""Operators that make angles of positions and frequencies."""


class Role(Enum):
    """What a constant is to the module that runs the graph."""

    WEIGHT = auto()
    STATISTIC = auto()
    BUFFER = auto()
    SETTING = auto()


def role_of(value: ir.Value) -> Role:
    """Tell what a constant is for.

    A floating constant is a weight where an operator learns it. Where it is added or multiplied, it is one only if it
    is finite and exactly one axis is longer than 1, which holds for biases and scales, and not for numbers of the
    formula, masks and tables. What is multiplied to make angles, that is, becomes a sine or cosine, is never one.
    """
    assert value.const_value is not None
    uses = list(value.uses())
    found = [OPERATORS.get(operator(node)) for node, _ in uses]
    if any(entry and slot in entry.statistics for entry, (_, slot) in zip(found, uses, strict=True)):
        return Role.STATISTIC
    small_integers = not value.const_value.dtype.is_floating_point() and len(value.const_value.shape) <= 1
    if small_integers or (
        uses and all(entry and slot in entry.settings for entry, (_, slot) in zip(found, uses, strict=True))
    ):
        return Role.SETTING
    if value.const_value.dtype.is_floating_point() and _learned(value, constant(value)):
        return Role.WEIGHT
    return Role.BUFFER


def _learned(value: ir.Value, array: np.ndarray | None) -> bool:
    assert array is not None
    for node, slot in value.uses():
        name = operator(node)
        if name in _CARRIERS:
            if (slot == 0 or name == "Concat") and any(_learned(output, array) for output in node.outputs):
                return True
        elif name in _SPREADING and any(_turns(output) for output in node.outputs):
            continue
        elif name in _BROADCASTING:
            if sum(size > 1 for size in array.shape) == 1 and bool(np.all(np.isfinite(array))):
                return True
        elif (entry := OPERATORS.get(name)) and slot in entry.weights:
            return True
    return False


def _turns(value: ir.Value) -> bool:
    """Tell whether a value is an angle."""
    return any(
        node.op_type in ("Sin", "Cos")
        or (node.op_type in _SPREADING and any(_turns(output) for output in node.outputs))
        for node, _ in value.uses()
    )
