"""What OpenVINO does not check before it computes: shapes that only meet inside the graph, and indices.

Given sizes that do not fit, its kernels answer nothing, or something, or read beyond a buffer and take the process
down. So whatever a client sent is held against the graph's own rules first.
"""

import math
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import psutil

from serveprune.errors import InvalidArgument, ResourceExhausted
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_LARGE_ELEMENTS = 1024
"""Constants above this are weights, of which only the shape matters here; smaller ones may be shapes or axes."""

_INT32 = 2**31
_WIDE = frozenset({Datatype.INT64, Datatype.UINT64, Datatype.UINT32})
_MOST_KNOWN_SHAPES = 8192
_EXAMPLE_SIZE = 8

_INDICES_INPUT = {
    "GatherElements": 1,
    "GatherND": 1,
    "ScatterElementsUpdate": 1,
    "ScatterNDUpdate": 1,
    "ScatterUpdate": 1,
}
"""Operators that write or read wherever their indices say, and the input that says it."""

_SAME_VALUES = frozenset({"Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})
_NODE = re.compile(r"While validating node '(?:opset\d+::)?(?P<operator>\w+)[^\n]*friendly_name '(?P<name>[^']*)'")


_MEMORY_BYTES = psutil.virtual_memory().total

Shapes = tuple[tuple[int, ...], ...]


class GraphRefused(InvalidArgument):
    """What a request sent does not fit the graph."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the graph refused these inputs: {problem}")


class InputChecks:
    """Refuses inputs that a graph cannot compute. Thread-safe.

    It keeps a copy of the graph without its weights. Shapes that were seen before cost a look-up; new ones are
    carried through the whole graph, which takes some milliseconds.
    """

    def __init__(self, package: Any, graph: Any, inputs: Sequence[TensorSpec]) -> None:
        """Take a graph over: its weights are dropped.

        Args:
            package: The package ``openvino``.
            graph: An ``openvino.Model`` that nobody else uses.
            inputs: What the graph takes, as ONNX Runtime tells it.

        Raises:
            InvalidArgument: The graph does something that cannot be checked before it is run.
        """
        _drop_weights(package, graph)
        self._graph = graph
        self._package = package
        self._ports = {name: port for port in graph.inputs for name in port.get_names()}
        self._names = [spec.name for spec in inputs if spec.name in self._ports]
        self._lock = threading.Lock()
        self._known: dict[Shapes, Shapes] = {}
        example = tuple(
            tuple(size if size != DYNAMIC else (_EXAMPLE_SIZE if axis else 1) for axis, size in enumerate(spec.shape))
            for spec in inputs
            if spec.name in self._ports
        )
        _refuse_wild_indices(graph)
        # Sizes that were made up may not fit the graph; then requests show the same.
        with suppress(GraphRefused):
            self._expected(example)
        # Wider integers are cut to 32 bits.
        wide = {spec.name: _INT32 for spec in inputs if spec.name in self._ports and spec.datatype in _WIDE}
        self._limits = wide | _index_limits(graph)

    def check(self, feeds: Mapping[str, Array]) -> Shapes:
        """Refuse inputs whose shapes do not fit the graph, or that point beyond a table; return its answers' shapes.

        Raises:
            InvalidArgument: The message names the node, or the input.
            ResourceExhausted: A value within the graph would be larger than this machine's memory.
        """
        shapes = tuple(feeds[name].shape for name in self._names)
        expected = self._known.get(shapes)
        if expected is None:
            expected = self._learn(shapes)
        for name, size in self._limits.items():
            array = feeds[name]
            if array.size and (array.min() < -size or array.max() >= size):
                raise GraphRefused(
                    f"{name}: expected values from {-size} to {size - 1}, got {array.min()} to {array.max()}"
                )
        return expected

    def _learn(self, shapes: Shapes) -> Shapes:
        with self._lock:
            expected = self._expected(shapes)
            if len(self._known) >= _MOST_KNOWN_SHAPES:
                # The oldest goes; should it come again, it is only checked again.
                del self._known[next(iter(self._known))]
            self._known[shapes] = expected
        return expected

    def _expected(self, shapes: Shapes) -> Shapes:
        """Carry the inputs' shapes through the graph."""
        partial = self._package.PartialShape
        try:
            self._graph.reshape(
                {self._ports[name]: partial(list(shape)) for name, shape in zip(self._names, shapes, strict=True)}
            )
        except RuntimeError as error:
            raise GraphRefused(shape_problem(str(error))) from error
        for node in self._graph.get_ops():
            for output in node.outputs():
                if output.get_partial_shape().is_dynamic:
                    # What values ask for cannot be known before it is computed.
                    raise InvalidArgument(
                        f"the shape of {node.get_friendly_name()} depends on values, which OpenVINO does not check; "
                        "serve this graph with backend: onnxruntime"
                    )
                size = math.prod(output.get_shape()) * output.get_element_type().size
                if size > _MEMORY_BYTES:
                    raise ResourceExhausted(
                        f"these inputs need more memory than there is: node {node.get_friendly_name()} would give "
                        f"{size} bytes"
                    )
        return tuple(tuple(output.get_shape()) for output in self._graph.outputs)


def shape_problem(message: str) -> str:
    """Return which node refused which shapes, without where in OpenVINO's source that is."""
    nodes = list(_NODE.finditer(message))
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = lines[-1] if lines and "failed at src/" not in lines[-1] and "While validating" not in lines[-1] else ""
    reason = reason.rstrip(".") or "the shapes do not fit"
    # The innermost is told last.
    return f"node {nodes[-1]['name']} ({nodes[-1]['operator']}): {reason}" if nodes else reason


def _drop_weights(package: Any, graph: Any) -> None:
    operators = package.opset13
    for node in graph.get_ops():
        if node.get_type_name() != "Constant":
            continue
        shape = list(node.get_output_shape(0))
        if math.prod(shape) <= _LARGE_ELEMENTS:
            continue
        element = node.get_element_type()
        one = operators.constant(0, element)
        stand_in = operators.broadcast(one, np.array(shape, np.int64))
        node.output(0).replace(stand_in.output(0))


def _refuse_wild_indices(graph: Any) -> None:
    for node in graph.get_ops():
        position = _INDICES_INPUT.get(node.get_type_name())
        if position is None or _source(node, position).get_type_name() in ("Constant", "Broadcast"):
            continue
        raise InvalidArgument(
            f"node {node.get_friendly_name()} ({node.get_type_name()}) takes indices that are computed, which OpenVINO "
            "does not check; serve this graph with backend: onnxruntime"
        )


def _index_limits(graph: Any) -> dict[str, int]:
    """Return how long the tables are that inputs index: input name -> rows of the smallest."""
    limits: dict[str, int] = {}
    for node in graph.get_ops():
        if node.get_type_name() != "Gather":
            continue
        source, axis, table = _source(node, 1), _source(node, 2), node.input_value(0).get_partial_shape()
        if source.get_type_name() != "Parameter" or axis.get_type_name() != "Constant" or table.rank.is_dynamic:
            continue
        rows = table[int(np.ravel(axis.get_data())[0])]
        if rows.is_static:
            for name in source.output(0).get_names():
                limits[name] = min(rows.get_length(), limits.get(name, rows.get_length()))
    return limits


def _source(node: Any, position: int) -> Any:
    """Return the node that an input's values come from, past those that only change how they are laid out."""
    source = node.input_value(position).get_node()
    while source.get_type_name() in _SAME_VALUES:
        source = source.input_value(0).get_node()
    return source
