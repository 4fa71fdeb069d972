"""The page with all our series, of one worker."""

import errno
import logging

from prometheus_client import CollectorRegistry

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition
from serveprune.frontends.metrics_endpoint import MetricsEndpoint

_log = logging.getLogger(__name__)

_MOST_WORKERS = 64
_LAST_PORT = 65535


def open_page(registry: CollectorRegistry, address: Address) -> MetricsEndpoint | None:
    """Serve the page at the first port from the given one on that is free, and say in the log where.

    So each worker of a host has its own, and one that is started anew takes the place of the one that ended. Without
    the page the worker serves all the same.
    """
    last = min(address.port + _MOST_WORKERS - 1, _LAST_PORT) if address.port else 0
    for port in range(address.port, last + 1):
        endpoint = MetricsEndpoint(registry)
        try:
            found = endpoint.start(Address(address.host, port))
        except FailedPrecondition as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
                continue
            _log.error("no page with metrics: %s:%d: %s", address.host, port, error.__cause__)
            return None
        _log.info("metrics of this worker at http://%s/metrics", found)
        return endpoint
    _log.error("no page with metrics: the ports %d to %d of %s are taken", address.port, last, address.host)
    return None
