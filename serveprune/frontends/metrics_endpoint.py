from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition


class MetricsEndpoint:
    """Serves a registry at ``/metrics`` from threads of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._server: WSGIServer | None = None

    def start(self, address: Address) -> Address:
        """Listen, and return where, with the real port.

        Raises:
            FailedPrecondition: The address cannot be listened on.
        """
        try:
            self._server, _ = start_http_server(address.port, address.host, registry=self._registry)
        except OSError as error:
            raise FailedPrecondition(
                f"server.metrics: cannot listen on {address}: {error.strerror}; choose another port"
            ) from error
        return Address(address.host, self._server.server_port)

    def stop(self) -> None:
        """Close; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
