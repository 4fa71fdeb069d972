import logging
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from serveprune.administration.grpc_service import SERVICE, AdminGrpcService
from serveprune.config.server import Address, ServerConfig
from serveprune.errors import FailedPrecondition
from serveprune.frontends.certificates import ServerCertificate
from serveprune.frontends.grpc.credentials import server_credentials
from serveprune.frontends.grpc.methods import UnaryMethods
from serveprune.frontends.grpc.receiving import ReceivingCalls
from serveprune.frontends.grpc.runtime import Server
from serveprune.frontends.watched_files import WatchedFiles

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**16
_WORKERS = 8
_MOST_CALLS = 64
"""In progress or waiting; more are refused."""
_MOST_CALLS_OF_A_CONNECTION = 16
_IDLE_MILLISECONDS = 600_000
_UPKEEP_SECONDS = 0.5
_FAREWELL_SECONDS = 1.0


class AdminGrpcEndpoint:
    """Serves the admin API over gRPC. Thread-safe.

    Args:
        service: Answers.
        limits: The server's.
        certificate: For TLS; without one nothing is encrypted.
    """

    def __init__(
        self,
        service: AdminGrpcService,
        *,
        limits: ServerConfig,
        certificate: WatchedFiles[ServerCertificate] | None = None,
    ) -> None:
        self._service = service
        self._limits = limits
        self._certificate = certificate
        self._receiving = ReceivingCalls(timeout_seconds=limits.body_timeout_seconds, workers=_WORKERS)
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="admin-grpc")
        self._server: Server | None = None

    def start(self, address: Address) -> Address:
        """Bind and serve; return the address with its real port.

        Raises:
            FailedPrecondition: The address cannot be bound.
        """
        server: Server = grpc.server(self._pool, options=self._options(), maximum_concurrent_rpcs=_MOST_CALLS)
        methods = UnaryMethods(self._receiving)
        server.add_registered_method_handlers(SERVICE, self._service.handlers(methods, pool=self._pool))
        try:
            if self._certificate is None:
                port: int = server.add_insecure_port(str(address))
            else:
                port = server.add_secure_port(str(address), server_credentials(self._certificate))
        except RuntimeError as error:
            raise FailedPrecondition(
                f"server.admin.grpc: cannot listen on {address}; is the port taken, or the host another machine's? "
                "choose another address"
            ) from error
        server.start()
        self._server = server
        threading.Thread(target=self._keep_up, name="admin-grpc-upkeep", daemon=True).start()
        return Address(address.host, port)

    def stop(self, *, drain_seconds: float) -> None:
        """Refuse new calls, answer those in flight, cancel what is left after ``drain_seconds``; idempotent."""
        self._stopped.set()
        server, self._server = self._server, None
        if server is not None and not server.stop(drain_seconds).wait(drain_seconds + _FAREWELL_SECONDS):
            _log.warning("calls of the admin API were still open after its end; left to themselves")
        self._pool.shutdown(wait=False)

    def _options(self) -> list[tuple[str, int]]:
        limits = self._limits
        return [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # By default a second server on the same port takes half of the first one's calls, without a word.
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", _MOST_CALLS_OF_A_CONNECTION),
            ("grpc.max_allowed_incoming_connections", limits.max_connections),
            ("grpc.max_metadata_size", limits.max_header_bytes),
            ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
            ("grpc.max_connection_idle_ms", _IDLE_MILLISECONDS),
            ("grpc.server_handshake_timeout_ms", math.ceil(limits.body_timeout_seconds * 1000)),
        ]

    def _keep_up(self) -> None:
        while not self._stopped.wait(_UPKEEP_SECONDS):
            try:
                self._receiving.cut_off(waiting=0)
            except Exception:  # the next round must come
                _log.exception("upkeep of the admin API's gRPC endpoint failed")
