"""What rules and surgery read off a node."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from serveprune.oip.tensor import Array


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return an attribute's value."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """Return an attribute that lists integers, ``None`` if the node lacks it."""
    found = attribute(node, name)
    return None if found is None else tuple(int(item) for item in found)


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of a constant input, ``None`` for what is computed or absent."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def given(node: ir.Node, slot: int) -> ir.Value | None:
    """Return an input, ``None`` if the node lacks it."""
    return node.inputs[slot] if slot < len(node.inputs) else None


def required(node: ir.Node, slot: int) -> ir.Value:
    """Return an input that the operator cannot do without."""
    value = node.inputs[slot]
    assert value is not None
    return value


def listed(node: ir.Node, *, slot: int, name: str) -> tuple[Sequence[int] | None, bool]:
    """Return numbers that newer opsets give as an input and older ones as an attribute.

    Returns:
        The numbers, ``None`` if they are absent or computed; and whether they are computed.
    """
    value = given(node, slot)
    if value is None:
        return integers(node, name), False
    array = constant(value)
    return (None, True) if array is None else (tuple(array.reshape(-1).tolist()), False)


def key(node: ir.Node) -> str:
    """Return the name of a node's first output that has one, which names the node in every copy of the graph."""
    return next((output.name for output in node.outputs if output.name), "")


def label(node: ir.Node) -> str:
    """Name a node for people."""
    return f"{node.op_type} {node.name or key(node)}"


def operator(node: ir.Node) -> str:
    """Return the key of a node's operator in the table."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
