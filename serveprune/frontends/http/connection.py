import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serveprune.errors import InvalidArgument, ServePruneError, Unavailable
from serveprune.frontends.http.asgi import Header
from serveprune.frontends.http.deadline import Deadline
from serveprune.frontends.http.direct_exchange import DirectExchange
from serveprune.frontends.http.errors import BodyTimeout, HeadersTooLarge, UrlTooLong
from serveprune.frontends.http.reply import Reply, error_reply

_UPGRADE_HEADERS = (b"connection", b"upgrade", b"http2-settings")
_RETRY_SECONDS = 1.0
_SMALL_BYTES = 65536
_CLOSE = (b"connection", b"close")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one client, and all of them together, may take.

    Attributes:
        max_connections: Connections that are served at once.
        max_header_bytes: Names and values of one request's headers; of its URL as much again.
        max_headers: Headers of one request.
        patience_seconds: For the headers, for the rest of a body, and for reading on in an answer.
        keep_alive_seconds: How long an idle connection stays open.
    """

    max_connections: int
    max_header_bytes: int
    max_headers: int
    patience_seconds: float
    keep_alive_seconds: float


class DirectAnswers(Protocol):
    """Finds the requests that need not go through ASGI."""

    def exchange(self, connection: "Connection", *, new_head: bytes | None) -> DirectExchange | None:
        """Return the exchange for a request whose headers are complete; ``None`` if it is for ASGI."""
        ...

    def known_exchange(self, connection: "Connection", data: bytes) -> tuple[DirectExchange, bytes] | None:
        """Return the exchange for a whole request, and its body; ``None`` if it must be parsed."""
        ...


class NoDirectAnswers:
    """Has all requests go through ASGI."""

    def exchange(self, connection: "Connection", *, new_head: bytes | None) -> DirectExchange | None:
        """See `DirectAnswers.exchange`."""
        return None

    def known_exchange(self, connection: "Connection", data: bytes) -> tuple[DirectExchange, bytes] | None:
        """See `DirectAnswers.known_exchange`."""
        return None


class Connection(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn is not analysed, see pyproject.toml
    """One client connection: uvicorn's, and what uvicorn leaves to a proxy in front of it.

    Attributes:
        new_head: Of the request that comes next, if it is worth remembering; see `KnownHeads`.

    A client must send its headers, and the rest of a body that was refused, within a time, and must not stop
    reading a large answer; headers and URL are bounded, and so is the number of connections. What is no HTTP at all
    is answered in JSON like every other error. An offer to change the protocol is ignored, as HTTP allows: Java's
    HttpClient offers HTTP/2 with every first request, and the parser takes no body after it.

    Small inferences, nearly all requests there are, are answered by a `DirectExchange`; all else goes through ASGI.
    """

    limits: ClassVar[ConnectionLimits]
    direct: ClassVar[DirectAnswers]
    parser: Any
    cycle: Any
    url: bytes
    headers: list[Header]
    _waits_for_more: bool

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a first request; turn the client away where there are too many."""
        self.deadline = Deadline(self.loop, self._give_up)
        self._stall: asyncio.TimerHandle | None = None
        self._in_headers = self._in_body = False
        self._in_message = False
        self.new_head: bytes | None = None
        self._exchange: DirectExchange | None = None
        self._refusal: ServePruneError | None = None
        self._head_bytes = self._silent_bytes = 0
        if len(self.connections) >= self.limits.max_connections:
            self.transport, self.cycle = transport, None
            self._refuse(_too_many_connections(self.limits.max_connections))
            return
        super().connection_made(transport)
        self.deadline.set(self.limits.patience_seconds)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and a request that offers an upgrade once more without the offer."""
        if self.transport.is_closing():
            return
        if not self._in_message and (self.cycle is None or self.cycle.response_complete):
            known = self.direct.known_exchange(self, data)
            if known is not None:
                self.cycle = self._exchange = exchange = known[0]
                self.deadline.clear()
                exchange.on_body(known[1])
                exchange.on_complete()
                return
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal or InvalidArgument("expected an HTTP/1.1 request, got something else"))
            return
        if self._silent_bytes > self.limits.max_header_bytes:
            # The parser keeps a header until it is complete.
            self._refuse(_headers_too_large(self.limits))
        elif self._is_reading():
            if not self.deadline.is_set or not self._waits_for_more:
                self.deadline.set(self.limits.patience_seconds)
            self._waits_for_more = True

    def _is_reading(self) -> bool:
        """Tell whether the client, and not this server, is to be waited for; ASGI waits for bodies itself."""
        if self._exchange is None:
            return self._in_headers
        # A pipelined request may be read while an exchange is on its way.
        return self._in_body and self.cycle is self._exchange

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and give up what is in flight."""
        self.deadline.close()
        self._end_stall()
        if self._exchange is not None:
            self._exchange.abandon()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Note that a request has begun; what ASGI wants to know of it is gathered only if it goes there."""
        self._in_message = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._head_bytes = 0
        self._in_headers, self._waits_for_more = True, False

    def on_url(self, url: bytes) -> None:
        """Keep the URL, which may come in pieces."""
        self.url += url
        if len(self.url) > self.limits.max_header_bytes:
            self._refusal = UrlTooLong(
                f"expected a URL of at most {self.limits.max_header_bytes} bytes (server.max_header_bytes), got more"
            )
            raise self._refusal

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, as long as there are not too many."""
        self._silent_bytes = 0
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self.limits.max_header_bytes or len(self.headers) >= self.limits.max_headers:
            self._refusal = _headers_too_large(self.limits)
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Leave the waiting to whoever answers, and who knows what the body is for."""
        self._silent_bytes = 0
        if self._exchange is None:
            self.deadline.clear()
        self._in_headers, self._in_body, self._waits_for_more = False, True, False
        new_head, self.new_head = self.new_head, None
        if self.parser.should_upgrade():
            return
        if self.cycle is None or self.cycle.response_complete:
            self._exchange = self.direct.exchange(self, new_head=new_head)
            if self._exchange is not None:
                self.cycle = self._exchange
                return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on."""
        self._silent_bytes = 0
        if self._exchange is not None and self.cycle is self._exchange:
            self._exchange.on_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop waiting for the client."""
        self._silent_bytes = 0
        self._in_message = self._in_body = False
        if self.parser.should_upgrade():
            # It comes once more, without the offer.
            return
        if self._exchange is not None and self.cycle is self._exchange:
            self._exchange.on_complete()
            return
        if self.cycle.response_complete:
            # Answered before its end.
            self.deadline.set(self.limits.keep_alive_seconds)
        elif self._exchange is None:
            self.deadline.clear()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for it, or for the rest of one that was answered before its end."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self.deadline.clear()
            self._start_asgi_task(*self.pipeline.pop())
        elif self._in_headers or (self._in_body and self.cycle.response_complete):
            self.deadline.set(self.limits.patience_seconds)
        else:
            self.deadline.set(self.limits.keep_alive_seconds)

    def answer(self, exchange: DirectExchange, reply: Reply) -> None:
        """Send the answer of an exchange, which is over then."""
        self._exchange = None
        if self.transport.is_closing():
            return
        closes = not exchange.keep_alive or _CLOSE in reply.headers
        self._write(reply, closes=closes)
        if closes:
            self.transport.close()
        self.on_response_complete()

    def cut_off(self) -> None:
        """Tell a client whose inference outlasts the end of the server so."""
        if self._exchange is not None:
            self._exchange.give_up(Unavailable("the server is shutting down", retry_after_seconds=_RETRY_SECONDS))

    def pause_writing(self) -> None:
        """Begin to watch whether the client reads on."""
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        """Stop watching."""
        self._end_stall()
        super().resume_writing()

    def _watch_stall(self, last_bytes: int | None = None) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        if last_bytes is not None and left_bytes >= last_bytes:
            self.transport.abort()
        else:
            self._stall = self.loop.call_later(self.limits.patience_seconds, self._watch_stall, left_bytes)

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _decline_upgrade(self, rest: bytes) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(InvalidArgument("expected a request to this server, got CONNECT"))
            return
        head = [b"%s %s HTTP/1.1\r\n" % (method, self.url)]
        head += [b"%s: %s\r\n" % header for header in self.headers if header[0] not in _UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        patience = self.limits.patience_seconds
        if self._exchange is not None:
            self._exchange.time_out(patience_seconds=patience)
        elif self._in_headers:
            self._refuse(BodyTimeout(f"expected all headers within {patience:g} s; send them faster"))
        else:
            self.transport.close()

    def _refuse(self, error: ServePruneError) -> None:
        # An answer that is still to come would be taken for the answer to another request.
        if self.cycle is None or self.cycle.response_complete:
            self._write(error_reply(error), closes=True)
        self.transport.close()

    def _write(self, reply: Reply, *, closes: bool) -> None:
        head = reply.head(self.server_state.default_headers, closes=closes)
        if reply.size_bytes < _SMALL_BYTES:
            self.transport.write(b"".join((head, *reply.parts)))
            return
        self.transport.write(head)
        for part in reply.parts:
            self.transport.write(part)


def connection_class(limits: ConnectionLimits, direct: DirectAnswers) -> type[Any]:
    """Return the connection class of one server; uvicorn constructs the connections itself."""
    return type("Connection", (Connection,), {"limits": limits, "direct": direct})


def _headers_too_large(limits: ConnectionLimits) -> HeadersTooLarge:
    return HeadersTooLarge(
        f"expected at most {limits.max_headers} headers of {limits.max_header_bytes} bytes together "
        "(server.max_header_bytes), got more"
    )


def _too_many_connections(limit: int) -> Unavailable:
    return Unavailable(
        f"the server already holds {limit} connections (server.max_connections); retry later",
        retry_after_seconds=_RETRY_SECONDS,
    )
