from serveprune.frontends.http.asgi import Headers
from serveprune.frontends.http.reply import Reply
from serveprune.frontends.http.routes import HttpRoute
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.observability.request_observer import RequestObserver

_ROUTE = "/v2/models/{model}/infer"
_ROUTE_OF_VERSION = "/v2/models/{model}/versions/{version}/infer"


class HttpObservation:
    """Records the inferences of an HTTP front end."""

    def __init__(self, observer: RequestObserver, *, encrypted: bool) -> None:
        self._observer = observer
        self._scheme = "https" if encrypted else "http"

    def begin(self, route: HttpRoute, headers: Headers) -> ObservedRequest:
        """Begin to record a request whose head is there."""
        method = _ROUTE if route.version is None else _ROUTE_OF_VERSION
        record = self._observer.begin("http", method, headers, scheme=self._scheme)
        record.asks_for(route.model, route.version)
        return ObservedRequest(self._observer, record)


def answered(observed: ObservedRequest, reply: Reply) -> Reply:
    """Note that a reply goes out, and return it with what it says of the request."""
    more = observed.answered(size_bytes=reply.size_bytes, status=reply.status)
    return Reply(reply.status, (*reply.headers, *((name.encode(), text.encode()) for name, text in more)), reply.parts)
