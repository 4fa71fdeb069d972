"""An ASGI application on an address of its own, on an event loop in a thread of its own."""

import asyncio
import logging
import socket
import threading
import time
from typing import Any

import uvicorn

from serveprune.config.server import Address, ServerConfig
from serveprune.errors import FailedPrecondition, Internal
from serveprune.frontends.certificates import ServerCertificate
from serveprune.frontends.http.connection import ConnectionLimits, DirectAnswers, connection_class
from serveprune.frontends.http.tls_transport import TlsListener
from serveprune.frontends.watched_files import WatchedFiles

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s after which common load balancers close an idle connection themselves."""
_MAX_HEADERS = 128
_START_SECONDS = 30.0
_LAST_WORDS_SECONDS = 0.05
_STOP_MARGIN_SECONDS = 5.0
_POLL_SECONDS = 0.005


class HttpEndpoint:
    """Listens, bounds what clients may take, and hands their requests to an application.

    Args:
        application: Answers, as ASGI 3 says.
        direct: Answers some requests without it.
        setting: Of the address, for messages.
        limits: The server's.
        certificate: For TLS; without one nothing is encrypted.
    """

    def __init__(
        self,
        application: Any,
        direct: DirectAnswers,
        *,
        setting: str,
        limits: ServerConfig,
        certificate: WatchedFiles[ServerCertificate] | None = None,
    ) -> None:
        self._application = application
        self._direct = direct
        self._setting = setting
        self._limits = limits
        self._certificate = certificate
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, address: Address, *, shared: bool = False) -> Address:
        """Begin to serve and return where, with the real port.

        Args:
            address: To listen on.
            shared: With other processes of one server.

        Raises:
            FailedPrecondition: The address cannot be listened on.
        """
        listener = _listen(address, setting=self._setting, shared=shared)
        host, port = listener.getsockname()[:2]
        connections: Any = connection_class(self._connection_limits(), self._direct)
        encrypted = None
        if self._certificate is not None:
            connections = encrypted = TlsListener(
                self._certificate,
                connections,
                max_handshakes=self._limits.max_connections,
                patience_seconds=self._limits.body_timeout_seconds,
            )
        server = _Server(self._uvicorn_config(connections), encrypted)
        thread = threading.Thread(
            target=_serve, args=(server, listener), name=self._setting.removeprefix("server."), daemon=True
        )
        thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                listener.close()
                raise Internal(f"{self._setting}: the endpoint did not start; see the server's log")
            time.sleep(_POLL_SECONDS)
        self._server, self._thread = server, thread
        return Address(host, port)

    def stop(self, *, drain_seconds: float) -> None:
        """Stop accepting, finish what is in flight for so long at the most, then close; idempotent."""
        if self._server is None or self._thread is None:
            return
        # uvicorn reads it only when it stops.
        self._server.config.timeout_graceful_shutdown = drain_seconds
        self._server.should_exit = True
        self._thread.join(drain_seconds + _STOP_MARGIN_SECONDS)
        if self._thread.is_alive():
            _log.error("%s did not stop within %.1f s", self._setting, drain_seconds + _STOP_MARGIN_SECONDS)
        self._server = self._thread = None

    def _connection_limits(self) -> ConnectionLimits:
        return ConnectionLimits(
            max_connections=self._limits.max_connections,
            max_header_bytes=self._limits.max_header_bytes,
            max_headers=_MAX_HEADERS,
            patience_seconds=self._limits.body_timeout_seconds,
            keep_alive_seconds=_KEEP_ALIVE_SECONDS,
        )

    def _uvicorn_config(self, connections: Any) -> Any:
        return uvicorn.Config(
            self._application,
            http=connections,
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
        )


class _Server(uvicorn.Server):  # type: ignore[misc]  # uvicorn is not analysed, see pyproject.toml
    """uvicorn's server, which also closes the connections that outlast its patience."""

    def __init__(self, config: Any, encrypted: TlsListener | None) -> None:
        super().__init__(config)
        self._encrypted = encrypted

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._encrypted is not None:
            self._encrypted.abort()
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.cut_off()
        if not self.server_state.connections:
            return
        # Requests that were cut off just now get the time to say so.
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


def _serve(server: _Server, listener: socket.socket) -> None:
    try:
        server.run(sockets=[listener])
    except Exception:  # a thread's exception has no other way out
        _log.exception("the HTTP server failed")


def _listen(address: Address, *, setting: str, shared: bool) -> socket.socket:
    try:
        family, *_, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((target[0], target[1]), family=family, backlog=_BACKLOG, reuse_port=shared)
    except OSError as error:
        raise FailedPrecondition(
            f"{setting}: cannot listen on {address}: {error.strerror or error}; choose another address"
        ) from None
