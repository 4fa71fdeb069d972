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

from serveprune.backends.openvino_indices import GraphRefused, IndexChecks
from serveprune.backends.openvino_operators import require_understood
from serveprune.errors import InvalidArgument, ResourceExhausted
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_LARGE_ELEMENTS = 1024
"""Constants above this are weights, of which only the shape matters here; smaller ones may be shapes or axes."""

_INT32 = 2**31
_WIDE = frozenset({Datatype.INT64, Datatype.UINT64, Datatype.UINT32})
_MOST_KNOWN_SHAPES = 8192
_EXAMPLE_SIZE = 8

_NODE = re.compile(r"While validating node '(?:opset\d+::)?(?P<operator>\w+)[^\n]*friendly_name '(?P<name>[^']*)'")


_MEMORY_BYTES = psutil.virtual_memory().total

Shapes = tuple[tuple[int, ...], ...]


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
        require_understood(graph)
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
        self._indices = IndexChecks(package, graph)
        # Sizes that were made up may not fit the graph; then requests show the same.
        with suppress(GraphRefused):
            self._expected(example)
        # Wider integers are cut to 32 bits.
        wide = {spec.name: _INT32 for spec in inputs if spec.name in self._ports and spec.datatype in _WIDE}
        rows = self._indices.table_rows
        # OpenVINO calls an input also by the names of values that equal it.
        self._limits = wide | {name: rows[name] for name in self._names if name in rows}

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
        # A new shape may replace nodes, so they are listed anew.
        for output in (value for node in self._graph.get_ops() for value in node.outputs()):
            if output.get_partial_shape().is_dynamic:
                # What values ask for cannot be known before it is computed.
                raise InvalidArgument(
                    f"the shape of {_name(output)} depends on values, which OpenVINO does not check; serve this graph "
                    "with backend: onnxruntime"
                )
            size_bytes = output.get_tensor().size
            if size_bytes > _MEMORY_BYTES:
                raise ResourceExhausted(
                    f"these inputs need more memory than there is: node {_name(output)} would give {size_bytes} bytes"
                )
        self._indices.check()
        return tuple(tuple(output.get_shape()) for output in self._graph.outputs)


def _name(value: Any) -> str:
    name: str = value.get_node().get_friendly_name()
    return name


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
        element = node.get_element_type()
        # Wide integers may be indices, of which the values matter.
        if math.prod(shape) <= _LARGE_ELEMENTS or element in (package.Type.i32, package.Type.i64):
            continue
        one = operators.constant(0, element)
        stand_in = operators.broadcast(one, np.array(shape, np.int64))
        node.output(0).replace(stand_in.output(0))
