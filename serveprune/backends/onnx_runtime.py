from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from serveprune.errors import Internal, InvalidArgument
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
_ERRORS_ONLY = 3


class OnnxRuntimeSession:
    """An ``onnxruntime.InferenceSession`` behind the `Session` protocol."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """See `Session.run`."""
        session = self._session
        if session is None:
            raise Internal("the session was closed while a request was still using it")
        try:
            results: list[Array] = session.run(list(outputs) or self._output_names, dict(feeds))
        except _INVALID as error:
            raise InvalidArgument(f"the graph refused these inputs: {_first_line(error)}") from error
        except _FAILED as error:
            # Shapes that only meet inside the graph surface here as well (a Reshape or an Add that
            # does not fit), so the message goes to the caller; it names nodes, not memory.
            raise Internal(f"ONNX Runtime failed: {_first_line(error)}") from error
        return results

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


class OnnxRuntimeBackend:
    """Runs graphs with ONNX Runtime on CPU."""

    name = "onnxruntime"

    def load(self, path: Path, *, threads: int = 1) -> OnnxRuntimeSession:
        """See `Backend.load`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # An idle server must not burn a core, and several variants share the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
            raise InvalidArgument(f"{path.name}: ONNX Runtime cannot load this graph: {_first_line(error)}") from error
        return OnnxRuntimeSession(session)


def _spec(value: Any) -> TensorSpec:
    datatype = _DATATYPES.get(value.type)
    if datatype is None:
        raise InvalidArgument(f"{value.name}: type {value.type} cannot be served; expected a tensor of plain numbers")
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in value.shape)
    return TensorSpec(value.name, datatype, shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


_states = ort.capi.onnxruntime_pybind11_state
_INVALID = (_states.InvalidArgument,)
_FAILED = (_states.Fail, _states.RuntimeException, _states.EPFail, RuntimeError, ValueError)
