import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from serveprune.artifacts.graph_file import is_compressed, read_graph
from serveprune.backends.native_memory import give_back, keep_little
from serveprune.errors import Internal, InvalidArgument, ResourceExhausted, ServePruneError
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_DATATYPES = {
    "tensor(bool)": Datatype.BOOL,
    "tensor(uint8)": Datatype.UINT8,
    "tensor(uint16)": Datatype.UINT16,
    "tensor(uint32)": Datatype.UINT32,
    "tensor(uint64)": Datatype.UINT64,
    "tensor(int8)": Datatype.INT8,
    "tensor(int16)": Datatype.INT16,
    "tensor(int32)": Datatype.INT32,
    "tensor(int64)": Datatype.INT64,
    "tensor(float16)": Datatype.FP16,
    "tensor(float)": Datatype.FP32,
    "tensor(double)": Datatype.FP64,
    "tensor(string)": Datatype.BYTES,
}
_FATAL_ONLY = 4
"""What goes wrong is raised, and logged where it is caught."""


class OnnxRuntimeSession:
    """An ``onnxruntime.InferenceSession`` behind the `Session` protocol."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self.computes_in_caller = session.get_session_options().intra_op_num_threads == 1
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._strings = {spec.name for spec in (*self.inputs, *self.outputs) if spec.datatype is Datatype.BYTES}
        self._has_run = False

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """See `Session.run`."""
        session = self._session
        if session is None:
            raise Internal("the session was closed while a request was still using it")
        names = list(outputs) or self._output_names
        given = {name: _decoded(array, name=name) if name in self._strings else array for name, array in feeds.items()}
        try:
            results: list[Array] = session.run(names, given)
        except _REFUSED as error:
            raise self._failure(error) from error
        self._has_run = True
        if not self._strings:
            return results
        return [_encoded(array) if name in self._strings else array for name, array in zip(names, results, strict=True)]

    def _failure(self, error: Exception) -> ServePruneError:
        message = _reason(error)
        if isinstance(error, MemoryError) or _NO_MEMORY.search(message):
            return ResourceExhausted(f"these inputs need more memory than there is: {message}")
        # Shapes that only meet inside the graph (a Reshape or an Add that does not fit) are reported like a defect
        # of the graph. One that has run before has none.
        if isinstance(error, _states.InvalidArgument) or (self._has_run and _NODE.search(str(error))):
            return InvalidArgument(f"the graph refused these inputs: {message}")
        return Internal(f"ONNX Runtime failed: {message}")

    def close(self) -> None:
        """See `Session.close`."""
        if self._session is not None:
            self._session = None
            give_back()


class OnnxRuntimeBackend:
    """Runs graphs with ONNX Runtime on CPU."""

    name = "onnxruntime"

    def __init__(self, *, executors: int = 1) -> None:
        """Prepare the runtime.

        Args:
            executors: Runs of one graph at the same time. They compute on the threads that ask for them, so any
                number will do.
        """
        keep_little()

    def load(self, path: Path, *, threads: int = 1) -> OnnxRuntimeSession:
        """See `Backend.load`."""
        session = _open(path, session_options(threads))
        # Reading a graph and packing its weights leaves about as much freed memory as the weights take.
        give_back()
        return OnnxRuntimeSession(session)


def graph_interface(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return what a graph takes and gives, without preparing it to be run.

    Raises:
        InvalidArgument: The file is not a graph that ONNX Runtime can read.
    """
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _open(path, options)
    return tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))


def _open(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        # Zeros that were packed for the disk are unpacked in memory; no second file is written.
        graph = read_graph(path) if is_compressed(path) else str(path)
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except InvalidArgument:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
        reason = _reason(error).replace(str(path), path.name)
        raise InvalidArgument(f"{path.name}: ONNX Runtime cannot load this graph: {reason}") from error


def session_options(threads: int) -> ort.SessionOptions:
    """Return how every graph runs here, with so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # An idle server must not burn a core, and several variants share the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(value: Any) -> TensorSpec:
    datatype = _DATATYPES.get(value.type)
    if datatype is None:
        raise InvalidArgument(f"{value.name}: type {value.type} cannot be served; expected a tensor of plain numbers")
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in value.shape)
    return TensorSpec(value.name, datatype, shape)


def _decoded(array: Array, *, name: str) -> Array:
    """Return strings as ONNX Runtime takes them; of bytes it would take what Python prints for them."""
    texts = np.empty(array.shape, dtype=object)
    for index, element in enumerate(array.flat):
        try:
            # Made-up inputs of an import's check are text already.
            texts.flat[index] = element if isinstance(element, str) else element.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"input {name}, element {index}: expected UTF-8 text, got byte 0x{element[error.start]:02x} at "
                f"position {error.start}"
            ) from error
    return texts


def _encoded(array: Array) -> Array:
    elements = np.empty(array.shape, dtype=object)
    for index, text in enumerate(array.flat):
        elements.flat[index] = text.encode()
    return elements


def _reason(error: Exception) -> str:
    """Return what ONNX Runtime says of nodes, shapes and values, without where in its own source that is."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = _STATUS.sub("", lines[0])
    node = _NODE.match(message)
    if node is None:
        return _without_source(message)
    name = f"{node['name']} ({node['operator']})" if node["name"] else node["operator"]
    return f"node {name}: {_without_source(node['reason'])}"


def _without_source(message: str) -> str:
    while (location := _LOCATION.match(message)) is not None:
        message = message[location.end() :]
        message = _after_signature(message) if location["folder"] else message.partition(" ")[2]
        message = _STATUS.sub("", message)
    return message


def _after_signature(message: str) -> str:
    """Cut the C++ signature a message begins with: it ends where its first parenthesis is closed."""
    depth = 0
    for index, character in enumerate(message):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth == 0:
            return _QUALIFIERS.sub("", message[index + 1 :])
    return message


_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NODE = re.compile(
    r"Non-zero status code returned while running (?P<operator>\S+) node\. Name:'(?P<name>[^']*)' "
    r"Status Message: (?P<reason>.*)"
)
_LOCATION = re.compile(r"^(?P<folder>\S*/)?[\w.-]+\.(?:h|cc|cpp|hpp|inl):\d+ ")
_QUALIFIERS = re.compile(r"^(?: const)?(?: \[with [^\]]*\])? ")
_NO_MEMORY = re.compile(r"failed to allocate|bad[_ ]alloc", re.IGNORECASE)
_states = ort.capi.onnxruntime_pybind11_state
_REFUSED = (
    _states.InvalidArgument,
    _states.Fail,
    _states.RuntimeException,
    _states.EPFail,
    RuntimeError,
    ValueError,
    MemoryError,
)
