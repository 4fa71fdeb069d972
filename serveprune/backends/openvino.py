import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serveprune.artifacts.graph_file import is_compressed, read_graph
from serveprune.backends.native_memory import give_back, keep_little
from serveprune.backends.onnx_runtime import graph_interface
from serveprune.backends.openvino_checks import InputChecks
from serveprune.backends.openvino_indices import GraphRefused
from serveprune.backends.openvino_package import openvino_package
from serveprune.errors import Internal, InvalidArgument, ResourceExhausted, ServePruneError
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec

_UNSUPPORTED = {
    Datatype.BYTES: "strings",
    Datatype.FP64: "64 bit floats, which OpenVINO would compute in 32 bits",
}
_NO_MEMORY = re.compile(r"alloc|out of memory|not enough memory", re.IGNORECASE)
_NOISE = re.compile(
    r"^(?:Caught exception: )?(?:Exception from |Check '.*failed at |FrontEnd API failed|Summary:|To facilitate )"
)
_NODE = re.compile(r"\bNode \S+ of type \w+")


class OpenVinoSession:
    """An ``openvino.CompiledModel`` behind the `Session` protocol, with as many requests as run at once."""

    computes_in_caller = False

    def __init__(
        self,
        compiled: Any,
        package: Any,
        checks: InputChecks,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        requests: int,
    ) -> None:
        """Take over a compiled model.

        Args:
            compiled: The model.
            package: The package ``openvino``.
            checks: Refuses what the model cannot compute.
            inputs: What the graph takes.
            outputs: What it gives.
            requests: Runs at the same time; further callers wait.
        """
        self.inputs = inputs
        self.outputs = outputs
        self._compiled: Any = compiled
        self._tensor = package.Tensor
        self._checks = checks
        # OpenVINO leaves out inputs that nothing depends on, and calls one also by the names of values that equal it.
        ports = _positions(compiled.inputs)
        self._input_ports = {spec.name: ports[spec.name] for spec in inputs if spec.name in ports}
        self._output_ports = _positions(compiled.outputs)
        self._output_names = [spec.name for spec in outputs]
        self._places = threading.BoundedSemaphore(requests)
        self._idle: list[Any] = []
        self._has_run = False

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        """See `Session.run`."""
        compiled = self._compiled
        if compiled is None:
            raise Internal("the session was closed while a request was still using it")
        given = self._accepted(feeds)
        expected = self._checks.check(given)
        ports = [self._output_ports[name] for name in outputs or self._output_names]
        with self._places:
            try:
                request = self._idle.pop() if self._idle else compiled.create_infer_request()
                for name, position in self._input_ports.items():
                    request.set_input_tensor(position, self._tensor(given[name], shared_memory=True))
                # `infer` says nothing of a node that fails, and leaves the answers of the run before.
                request.start_async()
                request.wait()
                # The next run of this request overwrites its outputs.
                results = [request.get_output_tensor(port).data.copy() for port in ports]
            except (RuntimeError, MemoryError) as error:
                # What a failed run left behind goes with its request.
                raise self._failure(error) from error
            self._has_run = True
            if self._compiled is not None:
                self._idle.append(request)
        for result, port in zip(results, ports, strict=True):
            if result.shape != expected[port]:
                # It says nothing when it runs out of memory half way.
                raise Internal(f"OpenVINO answered with shape {list(result.shape)} instead of {list(expected[port])}")
        return results

    def _accepted(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs as OpenVINO takes them: contiguous, and writeable although it writes nothing."""
        given: dict[str, Array] = {}
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                raise GraphRefused(f"{spec.name} is missing")
            if array.dtype != spec.datatype.dtype or not spec.accepts(array.shape):
                raise GraphRefused(
                    f"{spec.name}: expected {spec.datatype} {list(spec.shape)}, got {array.dtype} {list(array.shape)}"
                )
            flags = array.flags
            given[spec.name] = array if flags.c_contiguous and flags.writeable else array.copy(order="C")
        if len(feeds) > len(given):
            unknown = ", ".join(sorted(set(feeds) - set(given)))
            raise GraphRefused(f"it has no input {unknown}")
        return given

    def _failure(self, error: Exception) -> ServePruneError:
        message = _reason(error)
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return ResourceExhausted(f"these inputs need more memory than there is: {message}")
        # A graph that has run before has no defect, so it is what came that a node cannot compute.
        if self._has_run and _NODE.search(message):
            return GraphRefused(message)
        return Internal(f"OpenVINO failed: {message}")

    def close(self) -> None:
        """See `Session.close`."""
        if self._compiled is not None:
            self._compiled = None
            self._idle.clear()
            give_back()


class OpenVinoBackend:
    """Runs graphs with OpenVINO on CPU, in float32 where they say float32."""

    name = "openvino"

    def __init__(self, *, executors: int = 1) -> None:
        """Prepare the runtime.

        Args:
            executors: Runs of one graph at the same time. They share its weights; each has threads of its own.

        Raises:
            MissingExtra: OpenVINO is not installed.
        """
        keep_little()
        self._package = openvino_package()
        self._core = self._package.Core()
        self._executors = executors

    def load(self, path: Path, *, threads: int = 1) -> OpenVinoSession:
        """See `Backend.load`."""
        # Clients and manifests know a graph as ONNX Runtime describes it.
        inputs, outputs = graph_interface(path)
        for spec in (*inputs, *outputs):
            if spec.datatype in _UNSUPPORTED:
                raise InvalidArgument(
                    f"{path.name}: {spec.name} holds {_UNSUPPORTED[spec.datatype]}; serve this graph with backend: "
                    "onnxruntime"
                )
        try:
            graph = self._core.read_model(read_graph(path) if is_compressed(path) else str(path))
            compiled = self._core.compile_model(graph, "CPU", self._properties(threads))
        except RuntimeError as error:
            reason = _reason(error).replace(str(path), path.name)
            raise InvalidArgument(f"{path.name}: OpenVINO cannot load this graph: {reason}") from error
        try:
            checks = InputChecks(self._package, graph, inputs)
        except InvalidArgument as error:
            raise InvalidArgument(f"{path.name}: {error.message}") from error
        give_back()
        return OpenVinoSession(
            compiled, self._package, checks, inputs=inputs, outputs=outputs, requests=self._executors
        )

    def _properties(self, threads: int) -> dict[str, Any]:
        return {
            # A stream computes one run; all streams together have so many threads.
            "NUM_STREAMS": self._executors,
            "INFERENCE_NUM_THREADS": self._executors * threads,
            # Its default is bfloat16 wherever the processor has it, which nobody asked for.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            # Several variants and the front ends share the cores.
            "ENABLE_CPU_PINNING": False,
        }


def _positions(ports: Sequence[Any]) -> dict[str, int]:
    return {name: position for position, port in enumerate(ports) for name in port.get_names()}


def _reason(error: Exception) -> str:
    """Return what OpenVINO says, without where in its own source that is."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not _NOISE.match(line)) or type(error).__name__
