"""Request heads that were parsed before, so that they need not be parsed again.

A client sends the same bytes before every body but for the length of the body. To parse them takes a call per header,
and what they mean is the same each time.
"""

from dataclasses import dataclass

import httptools

from serveprune.frontends.authorization import TokenSet
from serveprune.frontends.http.request_headers import RequestHeaders
from serveprune.frontends.http.routes import HttpRoute

_END = b"\r\n\r\n"
_METHOD = b"POST "
_MAX_HEADS = 1024
_MAX_BYTES = 2048


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What a head says: an inference with a small body, on a connection that stays open.

    Attributes:
        let_in_by: The tokens of which it shows one; ``None`` where none is needed.
    """

    route: HttpRoute
    headers: RequestHeaders
    size_bytes: int
    let_in_by: TokenSet | None = None


class KnownHeads:
    """The heads of the requests that clients send again and again. For one event loop.

    A head is learned when it comes a second time: of clients that put something unique into each, none is kept for
    longer than it takes to fill the table. The table is bounded, and is begun anew when it is full.
    """

    def __init__(self, *, max_heads: int = _MAX_HEADS) -> None:
        self._max_heads = max_heads
        self._known: dict[bytes, KnownHead | None] = {}

    def find(self, data: bytes) -> tuple[KnownHead | None, bytes | None]:
        """Return what is known of the head that these bytes begin with, and the head if it is to be learned.

        Args:
            data: Begins where a request begins.
        """
        end = data.find(_END, 0, _MAX_BYTES) + len(_END)
        if end < len(_END) or not data.startswith(_METHOD):
            return None, None
        head = data[:end]
        known = self._known.get(head)
        if known is not None:
            return known, None
        if head in self._known:
            return None, head
        if len(self._known) >= self._max_heads:
            self._known.clear()
        self._known[head] = None
        return None, None

    def learn(
        self, head: bytes, route: HttpRoute, headers: RequestHeaders, *, let_in_by: TokenSet | None = None
    ) -> None:
        """Remember what a head means that has just been parsed."""
        if _ends_where_it_seems(head):
            self._known[head] = KnownHead(route, headers, len(head), let_in_by)

    def forget(self) -> None:
        """Forget all heads: what let them in has changed."""
        self._known.clear()


class _Watch:
    """Notes when a parser is done with a head."""

    is_complete = False

    def on_headers_complete(self) -> None:
        self.is_complete = True


def _ends_where_it_seems(head: bytes) -> bool:
    """Tell whether the parser, too, takes these bytes for exactly one head; a lenient one may see its end before."""
    watch = _Watch()
    parser = httptools.HttpRequestParser(watch)
    try:
        parser.feed_data(head[:-1])
        ends_before = watch.is_complete
        parser.feed_data(head[-1:])
    except httptools.HttpParserError:
        return False
    return watch.is_complete and not ends_before
