from typing import TYPE_CHECKING

from serveprune.errors import ServePruneError
from serveprune.frontends.http.arrivals import Arrivals
from serveprune.frontends.http.completions import Completions
from serveprune.frontends.http.direct_exchange import DirectExchange
from serveprune.frontends.http.inference import INLINE_BYTES, InferenceHandler
from serveprune.frontends.http.request_headers import parse_headers
from serveprune.frontends.http.routes import HttpRoute, Operation, find_route

if TYPE_CHECKING:
    from serveprune.frontends.http.connection import Connection

_KNOWN_URLS = 256


class DirectInference:
    """Finds the requests that can be answered without ASGI: inferences with a small body of known length.

    ASGI costs a task, a scope and half a dozen messages for each request, as much as everything else together.
    For one event loop.
    """

    def __init__(self, handler: InferenceHandler) -> None:
        self._handler = handler
        self._completions: Completions | None = None
        self._arrivals: Arrivals | None = None
        self._routes: dict[bytes, HttpRoute] = {}

    def exchange(self, connection: "Connection") -> DirectExchange | None:
        """Return the exchange for a request whose headers are complete; ``None`` if it is for ASGI."""
        if connection.expect_100_continue or connection.flow.write_paused:
            return None
        route = self._routes.get(connection.url) or self._find(connection)
        if route is None or connection.parser.get_method() != b"POST":
            return None
        try:
            headers = parse_headers(connection.headers)
        except ServePruneError:
            # Refused there, once more.
            return None
        if headers.body_bytes is None or headers.body_bytes > INLINE_BYTES or headers.coding != b"identity":
            return None
        if self._completions is None or self._arrivals is None:
            self._completions = Completions(connection.loop)
            self._arrivals = Arrivals(connection.loop, proceed=self._handler.proceed)
        keep_alive = connection.parser.get_http_version() != "1.0" and connection.parser.should_keep_alive()
        return DirectExchange(
            connection, self._handler, self._arrivals, self._completions, route, headers, keep_alive=keep_alive
        )

    def _find(self, connection: "Connection") -> HttpRoute | None:
        url = connection.url
        if b"/infer" not in url or b"?" in url or not url.startswith(b"/"):
            return None
        try:
            route = find_route("POST", url)
        except ServePruneError:
            return None
        if route.operation is not Operation.INFER:
            return None
        if len(self._routes) >= _KNOWN_URLS:
            self._routes.clear()
        self._routes[url] = route
        return route
