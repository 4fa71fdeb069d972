from typing import TYPE_CHECKING

from serveprune.errors import ServePruneError
from serveprune.frontends.authorization import Authorization, TokenSet, shown_in
from serveprune.frontends.http.arrivals import Arrivals
from serveprune.frontends.http.completions import Completions
from serveprune.frontends.http.direct_exchange import DirectExchange
from serveprune.frontends.http.inference import INLINE_BYTES, InferenceHandler
from serveprune.frontends.http.known_heads import KnownHeads
from serveprune.frontends.http.observation import HttpObservation
from serveprune.frontends.http.request_headers import RequestHeaders, parse_headers
from serveprune.frontends.http.routes import HttpRoute, Operation, find_route

if TYPE_CHECKING:
    from serveprune.frontends.http.connection import Connection

_KNOWN_URLS = 256


class DirectInference:
    """Finds the requests that can be answered without ASGI: inferences with a small body of known length.

    ASGI costs a task, a scope and half a dozen messages for each request, as much as everything else together.
    For one event loop.
    """

    def __init__(
        self,
        handler: InferenceHandler,
        *,
        authorization: Authorization | None = None,
        observation: HttpObservation | None = None,
    ) -> None:
        self._handler = handler
        self._observation = observation
        self._authorization = authorization
        self._completions: Completions | None = None
        self._arrivals: Arrivals | None = None
        self._routes: dict[bytes, HttpRoute] = {}
        self.heads = KnownHeads()

    def exchange(self, connection: "Connection", *, new_head: bytes | None) -> DirectExchange | None:
        """Return the exchange for a request whose headers are complete; ``None`` if it is for ASGI.

        Args:
            connection: Has parsed the headers.
            new_head: All of them as they came, if they are worth remembering.
        """
        if connection.expect_100_continue or connection.flow.write_paused:
            return None
        route = self._routes.get(connection.url) or self._find(connection)
        if route is None or connection.parser.get_method() != b"POST":
            return None
        let_in_by: TokenSet | None = None
        if self._authorization is not None:
            # Taken before it is asked, for it may change in between.
            let_in_by = self._authorization.tokens
            if self._authorization.refusal(shown_in(connection.headers)) is not None:
                return None
        try:
            headers = parse_headers(connection.headers)
        except ServePruneError:
            # Refused there, once more.
            return None
        if headers.body_bytes is None or headers.body_bytes > INLINE_BYTES or headers.coding != b"identity":
            return None
        keep_alive = connection.parser.get_http_version() != "1.0" and connection.parser.should_keep_alive()
        if new_head is not None and keep_alive:
            self.heads.learn(new_head, route, headers, let_in_by=let_in_by)
        return self._exchange(connection, route, headers, keep_alive=keep_alive)

    def known_exchange(self, connection: "Connection", data: bytes) -> tuple[DirectExchange, bytes] | None:
        """Return the exchange for a whole request whose head is known, and its body; ``None`` if it must be parsed.

        Args:
            connection: Waits for a request.
            data: All that has come.
        """
        known, connection.new_head = self.heads.find(data)
        if known is None or len(data) - known.size_bytes != known.headers.body_bytes or connection.flow.write_paused:
            return None
        if self._authorization is not None and known.let_in_by is not self._authorization.tokens:
            self.heads.forget()
            return None
        exchange = self._exchange(connection, known.route, known.headers, keep_alive=True)
        return exchange, data[known.size_bytes :]

    def _exchange(
        self, connection: "Connection", route: HttpRoute, headers: RequestHeaders, *, keep_alive: bool
    ) -> DirectExchange:
        if self._completions is None or self._arrivals is None:
            self._completions = Completions(connection.loop)
            self._arrivals = Arrivals(connection.loop, proceed=self._handler.proceed)
        observation = self._observation
        return DirectExchange(
            connection,
            self._handler,
            self._arrivals,
            self._completions,
            route,
            headers,
            keep_alive=keep_alive,
            observed=None if observation is None else observation.begin(route, headers.everything),
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
