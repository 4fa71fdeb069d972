"""Indices within a graph, which OpenVINO does not hold against the length of what they point into."""

from typing import Any

import numpy as np

from serveprune.errors import InvalidArgument

_INDICES_INPUT = {
    "GatherElements": 1,
    "GatherND": 1,
    "ScatterElementsUpdate": 1,
    "ScatterNDUpdate": 1,
    "ScatterUpdate": 1,
}
"""Operators that read or write wherever their indices say, and the input that says it."""

_SAME_VALUES = frozenset({"Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})


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
            position = _INDICES_INPUT.get(node.get_type_name())
            if position is None or _source(node, position).get_type_name() in ("Constant", "Broadcast"):
                continue
            indices = node.input_value(position)
            if node.get_type_name() != "GatherND" or not _follows_from_shapes(indices.get_node()):
                raise InvalidArgument(
                    f"node {node.get_friendly_name()} ({node.get_type_name()}) takes indices that are computed, which "
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
            # Each index names one element, or a slice, of what is behind the batch axes.
            axes = list(node.input_value(0).get_shape())[int(node.get_attributes()["batch_dims"]) :]
            ends = np.array(axes[: indices.shape[-1]])
            if indices.size and bool(np.any((indices < -ends) | (indices >= ends))):
                raise GraphRefused(
                    f"node {node.get_friendly_name()} (GatherND): an index points beyond {ends.tolist()}; sizes of "
                    "several inputs that should be equal are not"
                )


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
        if node.get_type_name() != "Gather":
            continue
        source, axis, table = _source(node, 1), _source(node, 2), node.input_value(0).get_partial_shape()
        if source.get_type_name() != "Parameter" or axis.get_type_name() != "Constant" or table.rank.is_dynamic:
            continue
        rows = table[int(np.ravel(axis.get_data())[0])]
        if rows.is_static:
            for name in source.output(0).get_names():
                rows_of[name] = min(rows.get_length(), rows_of.get(name, rows.get_length()))
    return rows_of


def _source(node: Any, position: int) -> Any:
    """Return the node that an input's values come from, past those that only change how they are laid out."""
    source = node.input_value(position).get_node()
    while source.get_type_name() in _SAME_VALUES:
        source = source.input_value(0).get_node()
    return source
