import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from serveprune.config.server import Address, ServerConfig
from serveprune.errors import Code, FailedPrecondition
from serveprune.frontends.authorization import Authorization
from serveprune.frontends.certificates import ServerCertificate
from serveprune.frontends.grpc import direct_calls
from serveprune.frontends.grpc.absent_methods import AbsentMethods
from serveprune.frontends.grpc.bounded_method import BoundedMethod
from serveprune.frontends.grpc.credentials import server_credentials
from serveprune.frontends.grpc.direct_calls import DirectCalls
from serveprune.frontends.grpc.health import HealthService, add_health
from serveprune.frontends.grpc.inference import SERVICE, InferenceService
from serveprune.frontends.grpc.methods import UnaryMethods
from serveprune.frontends.grpc.receiving import ReceivingCalls
from serveprune.frontends.grpc.reflection import add_reflection
from serveprune.frontends.grpc.runtime import Server
from serveprune.frontends.grpc.streams import OpenStreams
from serveprune.frontends.planes import ControlPlane, DataPlane
from serveprune.frontends.watched_files import WatchedFiles
from serveprune.observability.request_observer import RequestObserver

_log = logging.getLogger(__name__)

_QUICK_WORKERS = 8
"""Threads for the calls that wait for nothing: probes are answered however busy inference is."""

_STREAM_WORKERS = 4
"""Threads for reflection; each open stream occupies one."""

_CHANGE_WORKERS = 4
"""Threads for the calls that wait for a model to be loaded or unloaded."""

_UPKEEP_SECONDS = 0.5
"""How often overdue messages and changes of readiness are looked for."""

_MIN_STREAMS = 128
"""Streams of one connection at the least: probes and watchers must find one beside inference."""

_IDLE_MILLISECONDS = 600_000

_FAREWELL_SECONDS = 1.0
"""How long a drain waits for the last words to watchers, and for cancelled calls to end."""


class GrpcFrontend:
    """Serves the Open Inference Protocol, health and reflection over gRPC. Thread-safe.

    Args:
        dataplane: Answers inference and metadata requests.
        controlplane: Answers the repository index.
        config: Address, workers and limits.
        on_rejected: Told the code of each inference request that fails to reach the data plane.
        certificate: For TLS; without one nothing is encrypted.
        authorization: Judges who may ask; without one everybody may.
        observer: Records inferences.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        controlplane: ControlPlane,
        *,
        config: ServerConfig,
        on_rejected: Callable[[Code], None],
        certificate: WatchedFiles[ServerCertificate] | None = None,
        authorization: Authorization | None = None,
        observer: RequestObserver | None = None,
    ) -> None:
        self._config = config
        self._observer = observer
        self._certificate = certificate
        self._authorization = authorization
        self._on_rejected = on_rejected
        self._service = InferenceService(
            dataplane,
            controlplane,
            request_timeout_seconds=config.request_timeout_seconds,
            on_rejected=on_rejected,
            authorization=authorization,
            observer=observer,
        )
        self._receiving = ReceivingCalls(timeout_seconds=config.body_timeout_seconds, workers=config.grpc_workers)
        self._streams = OpenStreams()
        self._health = HealthService(dataplane.ready, services=frozenset(("", SERVICE)), streams=self._streams)
        self._server: Server | None = None
        self._pools: tuple[ThreadPoolExecutor, ...] = ()
        self._stopped = threading.Event()
        self._upkeep: threading.Thread | None = None
        self._calls: BoundedMethod | DirectCalls | None = None

    def start(self) -> Address:
        """Bind and serve; return the address with its real port.

        Raises:
            FailedPrecondition: The address cannot be bound.
        """
        workers = ThreadPoolExecutor(self._config.grpc_workers, thread_name_prefix="grpc")
        quick = ThreadPoolExecutor(_QUICK_WORKERS, thread_name_prefix="grpc-quick")
        streaming = ThreadPoolExecutor(_STREAM_WORKERS, thread_name_prefix="grpc-stream")
        changing = ThreadPoolExecutor(_CHANGE_WORKERS, thread_name_prefix="grpc-repository")
        self._pools = (workers, quick, streaming, changing)
        server: Server = grpc.server(quick, options=self._options())
        methods = UnaryMethods(self._receiving)
        server.add_registered_method_handlers(SERVICE, self._service.quick_handlers(methods, pool=quick))
        server.add_registered_method_handlers(SERVICE, self._service.slow_handlers(methods, pool=changing))
        inference = self._inference(methods, workers=workers, quick=quick)
        absent = AbsentMethods(SERVICE, receiving=self._receiving, pool=quick)
        generic = (absent,) if isinstance(inference, DirectCalls) else (inference, absent)
        server.add_generic_rpc_handlers(generic)
        self._calls = inference
        add_health(server, self._health, methods=methods, pool=quick)
        add_reflection(server, pool=streaming, streams=self._streams)
        port = self._bind(server)
        if isinstance(inference, DirectCalls):
            inference.start(server)
        else:
            server.start()
        self._server = server
        self._upkeep = threading.Thread(target=self._keep_up, args=(inference,), name="grpc-upkeep", daemon=True)
        self._upkeep.start()
        return Address(self._config.grpc.host, port)

    def stop(self, *, drain_seconds: float) -> None:
        """Refuse new calls, answer those in flight, cancel what is left after ``drain_seconds``; idempotent."""
        server, self._server = self._server, None
        self._stopped.set()
        if server is not None:
            if self._upkeep is not None:
                self._upkeep.join(_FAREWELL_SECONDS)
            farewell = threading.Thread(target=self._health.drain, name="grpc-farewell", daemon=True)
            farewell.start()
            # A watcher that reads nothing would hold either thread for good.
            farewell.join(_FAREWELL_SECONDS)
            stopped = server.stop(drain_seconds)
            self._streams.cancel_all()
            if not stopped.wait(drain_seconds + _FAREWELL_SECONDS):
                _log.warning("calls were still open %s s after the drain; left to themselves", _FAREWELL_SECONDS)
        for pool in self._pools:
            pool.shutdown(wait=False)

    def _inference(
        self, methods: UnaryMethods, *, workers: ThreadPoolExecutor, quick: ThreadPoolExecutor
    ) -> BoundedMethod | DirectCalls:
        if direct_calls.is_supported():
            return DirectCalls(
                self._service,
                self._receiving,
                max_active=self._config.grpc_workers,
                max_waiting=self._config.max_queued_requests,
                timeout_seconds=self._config.request_timeout_seconds,
                patience_seconds=self._config.body_timeout_seconds,
                pool=workers,
                on_rejected=self._on_rejected,
                authorization=self._authorization,
                observer=self._observer,
            )
        return BoundedMethod(
            self._service.infer_method,
            self._service.inference_handler(methods, pool=workers),
            limit=self._config.max_queued_requests,
            pool=quick,
            on_rejected=self._on_rejected,
            authorization=self._authorization,
            observer=self._observer,
        )

    def _bind(self, server: Server) -> int:
        address = self._config.grpc
        try:
            port: int
            if self._certificate is None:
                port = server.add_insecure_port(str(address))
            else:
                port = server.add_secure_port(str(address), server_credentials(self._certificate))
        except RuntimeError as error:
            raise FailedPrecondition(
                f"server.grpc: cannot listen on {address}; is the port taken, or the host another machine's? "
                "choose another address"
            ) from error
        return port

    def _options(self) -> list[tuple[str, int]]:
        config = self._config
        return [
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.max_send_message_length", config.max_request_bytes),
            # By default a second server on the same port takes half of the first one's calls, without a word. Among
            # processes of one server that is wanted; their supervisor keeps others away.
            ("grpc.so_reuseport", int(config.processes > 1)),
            # Of one connection; beyond that its client waits by itself, instead of filling this process with calls.
            ("grpc.max_concurrent_streams", max(_MIN_STREAMS, config.grpc_workers + config.max_queued_requests)),
            ("grpc.max_allowed_incoming_connections", config.max_connections),
            # Between two limits that differ, chance would decide.
            ("grpc.max_metadata_size", config.max_header_bytes),
            ("grpc.absolute_max_metadata_size", config.max_header_bytes),
            # A client that is gone without a word must not hold its connection for ever; others come back.
            ("grpc.max_connection_idle_ms", _IDLE_MILLISECONDS),
            ("grpc.server_handshake_timeout_ms", math.ceil(config.body_timeout_seconds * 1000)),
        ]

    def _keep_up(self, inference: BoundedMethod | DirectCalls) -> None:
        while not self._stopped.wait(_UPKEEP_SECONDS):
            try:
                self._receiving.cut_off(waiting=inference.waiting)
                if isinstance(inference, DirectCalls):
                    inference.end_overdue()
                self._health.refresh()
            except Exception:  # the next round must come
                _log.exception("upkeep of the gRPC front end failed")
