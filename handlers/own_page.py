"""The page with all our series, of one worker."""

import errno
import logging
import threading

from prometheus_client import CollectorRegistry

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition
from serveprune.frontends.metrics_endpoint import MetricsEndpoint

_log = logging.getLogger(__name__)

_MOST_WORKERS = 64
_LAST_PORT = 65535
_MOVE_SECONDS = 5.0


class OwnPage:
    """A page at the first port that is free, from a given one on: each worker of a host has its own.

    Where one was taken, the page moves there when it is free again: a worker that takes the place of another one is
    there before that one has ended, and shall be found where that one was.
    """

    def __init__(self, registry: CollectorRegistry, address: Address, *, move_seconds: float = _MOVE_SECONDS) -> None:
        """Serve the page, and say in the log where. Without the page the worker serves all the same.

        Args:
            registry: What the page shows.
            address: The first port to try; of port 0, any.
            move_seconds: How often a page that is not at the first port looks for a place before its own.
        """
        self._registry, self._address = registry, address
        self._last = min(address.port + _MOST_WORKERS - 1, _LAST_PORT) if address.port else 0
        self._port: int | None = None
        self._endpoint: MetricsEndpoint | None = None
        self._stopped = threading.Event()
        self._mover = threading.Thread(target=self._move, args=(move_seconds,), name="metrics-page", daemon=True)
        try:
            if not self._open(self._last):
                _log.error(
                    "no page with metrics: the ports %d to %d of %s are taken", address.port, self._last, address.host
                )
        except FailedPrecondition as error:
            _log.error("no page with metrics: %s: %s", address, error.__cause__)
            return
        if self._port != address.port and address.port:
            self._mover.start()

    @property
    def address(self) -> Address | None:
        """Where the page is; None: nowhere."""
        return None if self._port is None else Address(self._address.host, self._port)

    def stop(self) -> None:
        """Close; idempotent."""
        self._stopped.set()
        if self._mover.is_alive():
            self._mover.join()
        endpoint, self._endpoint, self._port = self._endpoint, None, None
        if endpoint is not None:
            endpoint.stop()

    def _move(self, seconds: float) -> None:
        while self._port != self._address.port and not self._stopped.wait(seconds):
            try:
                self._open(self._last if self._port is None else self._port - 1)
            except FailedPrecondition as error:
                _log.error("the page with metrics stays where it is: %s", error.__cause__)
                return

    def _open(self, last: int) -> bool:
        """Serve the page at the first port up to the last one, in place of the former; tell whether one was free.

        Raises:
            FailedPrecondition: The host is not of this machine, or a port is not for us.
        """
        for port in range(self._address.port, last + 1):
            endpoint = MetricsEndpoint(self._registry)
            try:
                found = endpoint.start(Address(self._address.host, port))
            except FailedPrecondition as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
                    continue
                raise
            former, self._endpoint, self._port = self._endpoint, endpoint, found.port
            if former is not None:
                former.stop()
            _log.info("metrics of this worker at http://%s/metrics", found)
            return True
        return False
