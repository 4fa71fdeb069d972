"""Which constants of a graph may get zeros, each seen as a matrix of outputs by inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from serveprune.compression.pruning.linear import LinearMap
from serveprune.errors import InvalidArgument
from serveprune.graph.node import attribute, key, operator, required
from serveprune.oip.tensor import Array

_RECURRENT = ("LSTM", "GRU", "RNN")
_LONGEST_LIST = 500


@dataclass(frozen=True, slots=True)
class PrunableWeight:
    """A constant whose single elements may become zero.

    As a matrix each row holds the weights of one output, and neighbouring columns are neighbouring inputs; the
    positions of a kernel follow one another as whole runs of inputs.

    Attributes:
        name: Of the constant.
        operator: Of the node that reads it.
        node: Name of the first node that reads it, for people.
        order: Axes of the constant in the order of the matrix.
        row_axes: How many of them make the rows.
        map: What its node computes, where that is a plain product with nothing but this weight.
        is_table: Whether rows are looked up in it.
    """

    name: str
    operator: str
    node: str
    order: tuple[int, ...]
    row_axes: int
    map: LinearMap | None
    is_table: bool = False

    def matrix(self, array: Array) -> Array:
        """Return a constant as ``(outputs, inputs)``, a copy."""
        moved = array.transpose(self.order)
        rows = int(np.prod(moved.shape[: self.row_axes]))
        return moved.reshape(rows, -1).copy()

    def array(self, matrix: Array, *, like: Array) -> Array:
        """Return a matrix in the shape and dtype of the constant."""
        moved = matrix.reshape([like.shape[axis] for axis in self.order])
        return np.ascontiguousarray(moved.transpose(np.argsort(self.order))).astype(like.dtype)

    def inputs(self, array: Array) -> int:
        """Return how many inputs lie beside each other."""
        return int(array.shape[self.order[-1]])

    def columns(self, array: Array) -> NDArray[np.int64]:
        """Return for each column the row of `LinearMap.matrix` it is, which runs through the kernel first."""
        inputs = self.inputs(array)
        taps = int(np.prod([array.shape[axis] for axis in self.order[self.row_axes : -1]]))
        return np.arange(inputs * taps).reshape(inputs, taps).T.ravel()


@dataclass(frozen=True, slots=True)
class WeightSelection:
    """What may get zeros, and why the other matrices stay as they are.

    Attributes:
        weights: In the order of the graph.
        left_whole: Name of a constant -> reason.
    """

    weights: tuple[PrunableWeight, ...]
    left_whole: Mapping[str, str]


def select_weights(model: ir.Model, *, embeddings: bool, ignore: Sequence[str]) -> WeightSelection:
    """Find the matrices, filters and tables of a graph; vectors (biases, norms) are never among them.

    Args:
        model: A prepared graph, constants as initializers.
        embeddings: Whether tables take part.
        ignore: Patterns of weight or node names that stay.

    Raises:
        InvalidArgument: A pattern matches nothing, or nothing is left to prune.
    """
    _require_matches(model, ignore)
    weights, left = [], {}
    for value in _matrices(model):
        found = _weight(value)
        name = value.name or ""
        if isinstance(found, str):
            left[name] = found
        elif found.is_table and not embeddings:
            left[name] = "embeddings: false"
        elif pattern := _matching(value, ignore):
            left[name] = f"ignore: {pattern}"
        else:
            weights.append(found)
    if not weights:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise InvalidArgument(
            "prune: expected weights of a Conv, Gemm, MatMul, recurrent layer or table to set to zero, got none; "
            f"left whole: {reasons[:_LONGEST_LIST] or 'the graph has no matrices of floats'}"
        )
    return WeightSelection(tuple(weights), left)


def _matrices(model: ir.Model) -> list[ir.Value]:
    """Return the float constants with more than one axis, in the order in which they are first read."""
    place = {key(node): index for index, node in enumerate(model.graph)}
    found = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or len(tensor.shape) < 2 or not tensor.dtype.is_floating_point() or not value.uses():
            continue
        if tensor.dtype.numpy().kind == "f" and sum(size > 1 for size in tensor.shape.numpy()) > 1:
            found.append(value)
    return sorted(found, key=lambda value: min(place.get(key(node), len(place)) for node, _ in value.uses()))


def _weight(value: ir.Value) -> PrunableWeight | str:
    """Describe a constant, or say why it stays whole."""
    views = {view for node, slot in value.uses() if (view := _view(node, slot, value)) is not None}
    readers = sorted({operator(node) for node, slot in value.uses() if _view(node, slot, value) is None})
    if readers:
        return f"read by {', '.join(readers)}, which is no product with a weight"
    tables = [view for view in views if view[2]]
    # A table that is a matrix elsewhere too is scored as what it mostly is: one row for one token.
    chosen = sorted(tables or views)[0]
    if len(views - {chosen}) > 0 and not tables:
        return "shared by layers that read it in different ways"
    nodes = [node for node, _ in value.uses()]
    first = nodes[0]
    order, row_axes, is_table = chosen
    return PrunableWeight(
        name=value.name or "",
        operator=operator(first),
        node=first.name or key(first),
        order=order,
        row_axes=row_axes,
        map=None if is_table else _map(first, value),
        is_table=is_table,
    )


_View = tuple[tuple[int, ...], int, bool]


def _view(node: ir.Node, slot: int, value: ir.Value) -> _View | None:
    """Return the order of axes, how many of them are rows, and whether it is a table; ``None`` for other readers."""
    assert value.const_value is not None
    rank = len(value.const_value.shape)
    axes = tuple(range(rank))
    name = operator(node)
    if name in ("Conv", "ConvTranspose") and slot == 1:
        outputs, inputs = (0, 1) if name == "Conv" else (1, 0)
        return (outputs, *axes[2:], inputs), 1, False
    if name == "Gemm" and slot == 1:
        return ((0, 1) if attribute(node, "transB", 0) else (1, 0)), 1, False
    if name == "MatMul" and slot == 1:
        return (*axes[:-2], rank - 1, rank - 2), rank - 1, False
    if name == "MatMul" and slot == 0:
        return axes, rank - 1, False
    if name in _RECURRENT and slot in (1, 2):
        return axes, 2, False
    if name == "Gather" and slot == 0 and rank == 2 and not attribute(node, "axis", 0):
        return axes, 1, True
    return None


def _map(node: ir.Node, value: ir.Value) -> LinearMap | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.inputs[1] is not value:
        return None
    inputs_last = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
    return LinearMap.of(node, data=required(node, 0), weight=value, channels_axis=1 if inputs_last else 0)


def _matching(value: ir.Value, patterns: Sequence[str]) -> str | None:
    names = [value.name or "", *(node.name or "" for node, _ in value.uses())]
    return next((pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in names)), None)


def _require_matches(model: ir.Model, patterns: Sequence[str]) -> None:
    names = {node.name or "" for node in model.graph} | set(model.graph.initializers)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            weights = ", ".join(value.name or "" for value in _matrices(model))
            raise InvalidArgument(
                f"prune: the ignore pattern {pattern!r} matches no weight and no node of the graph; weights are: "
                f"{weights[:_LONGEST_LIST]}"
            )
