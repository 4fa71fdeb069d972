"""Indices within a graph, which OpenVINO does not hold against the length of what they point into."""

from typing import Any

import numpy as np

from serveprune.errors import InvalidArgument
from serveprune.oip.tensor import Array

_INDICES_INPUT = {
    "Gather": 1,
    "GRUSequence": 2,
    "GatherElements": 1,
    "GatherND": 1,
    "LSTMSequence": 3,
    "RNNSequence": 2,
    "ScatterElementsUpdate": 1,
    "ScatterNDUpdate": 1,
    "ScatterUpdate": 1,
}
"""Operators that read or write wherever their indices say, and the input that says it."""

_SEQUENCES = frozenset({"GRUSequence", "LSTMSequence", "RNNSequence"})

_SAME_VALUES = frozenset({"Convert", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})


class GraphRefused(InvalidArgument):
    """What a request sent does not fit the graph."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the graph refused these inputs: {problem}")


class IndexChecks:
    """Indices that follow from the inputs' shapes, and those that are inputs themselves.

    Attributes:
        table_rows: Name of an input that indexes tables -> rows of the smallest.
    """

    def __init__(self, package: Any, graph: Any) -> None:
        """Find where a graph uses indices.

        Args:
            package: The package ``openvino``.
            graph: An ``openvino.Model``.

        Raises:
            InvalidArgument: Indices are computed from values, so that no check of inputs could vouch for them.
        """
        self._package = package
        self._parameters = [port.get_node() for port in graph.inputs]
        self._lookups: list[tuple[Any, Any]] = []
        for node in graph.get_ops():
            kind = node.get_type_name()
            position = _INDICES_INPUT.get(kind)
            if position is None or _is_safe(node, position):
                continue
            indices = node.input_value(position)
            if kind not in ("Gather", "GatherND") or not _follows_from_shapes(indices.get_node()):
                raise InvalidArgument(
                    f"node {node.get_friendly_name()} ({kind}) takes indices that are computed, which "
                    "OpenVINO does not check; serve this graph with backend: onnxruntime"
                )
            # Kept beside the graph, whose nodes it shares: a new shape there is a new shape here.
            self._lookups.append((node, package.Model([indices], self._parameters, "indices")))
        self.table_rows = _table_rows(graph)

    def check(self) -> None:
        """Compute the indices that follow from the shapes that the graph has just been given.

        Raises:
            GraphRefused: One points beyond what it is to find.
        """
        for node, model in self._lookups:
            port = node.input_value(1)
            found = self._package.Tensor(port.get_element_type(), port.get_shape())
            shapes_alone = [
                self._package.Tensor(parameter.get_element_type(), parameter.get_output_shape(0))
                for parameter in self._parameters
            ]
            vector = self._package.TensorVector
            outputs = vector([found])
            model.evaluate(outputs, vector(shapes_alone))
            indices = outputs[0].data
            ends = _ends(node, indices)
            if indices.size and bool(np.any((indices < -ends) | (indices >= ends))):
                raise GraphRefused(
                    f"node {node.get_friendly_name()} ({node.get_type_name()}): an index points beyond "
                    f"{ends.tolist()}; an input is longer than the graph allows, or several that should be equally "
                    "long are not"
                )


def _ends(node: Any, indices: Array) -> Array:
    """Return how many there are to choose from, for each number of an index."""
    sizes = list(node.input_value(0).get_shape())
    if node.get_type_name() == "Gather":
        return np.array(sizes[_axis(node) : _axis(node) + 1 or None])
    # Each index names one element, or a slice, of what is behind the batch axes.
    return np.array(sizes[int(node.get_attributes()["batch_dims"]) :][: indices.shape[-1]])


def _is_safe(node: Any, position: int) -> bool:
    """Tell whether nothing that a request sends could make an index point beyond what it is to find."""
    kind, source = node.get_type_name(), _source(node, position).get_type_name()
    if kind in _SEQUENCES:
        # Lengths of sequences, which OpenVINO's kernels do not go by.
        return _follows_from_shapes(node.input_value(position).get_node())
    if kind == "Gather":
        # Inputs are held against the table's length whenever they come; constants were, when the graph was imported.
        return source in ("Constant", "Parameter") and _table_rows_of(node) is not None
    # OpenVINO holds constant ones against sizes itself, but for GatherND.
    return bool(source == "Constant" and kind != "GatherND")


def _axis(node: Any) -> int:
    return int(np.ravel(_source(node, 2).get_data())[0])


def _follows_from_shapes(node: Any) -> bool:
    """Tell whether a node's value depends on shapes and constants alone."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        name, kind = node.get_friendly_name(), node.get_type_name()
        if kind == "Parameter":
            return False
        if kind in ("ShapeOf", "Constant") or name in seen:
            continue
        seen.add(name)
        waiting += [value.get_node() for value in node.input_values()]
    return True


def _table_rows(graph: Any) -> dict[str, int]:
    rows_of: dict[str, int] = {}
    for node in graph.get_ops():
        if node.get_type_name() != "Gather" or _source(node, 1).get_type_name() != "Parameter":
            continue
        rows = _table_rows_of(node)
        if rows is not None:
            for name in _source(node, 1).output(0).get_names():
                rows_of[name] = min(rows, rows_of.get(name, rows))
    return rows_of


def _table_rows_of(gather: Any) -> int | None:
    """Return how many there are to choose from; ``None`` where that is not the same for all requests."""
    axis, table = _source(gather, 2), gather.input_value(0).get_partial_shape()
    if axis.get_type_name() != "Constant" or table.rank.is_dynamic or table[_axis(gather)].is_dynamic:
        return None
    rows: int = table[_axis(gather)].get_length()
    return rows


def _source(node: Any, position: int) -> Any:
    """Return the node that an input's values come from, past those that only change how they are laid out."""
    source = node.input_value(position).get_node()
    while source.get_type_name() in _SAME_VALUES:
        source = source.input_value(0).get_node()
    return source
