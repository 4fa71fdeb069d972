import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.frontends.http.errors import BodyTimeout
from serveprune.frontends.http.reply import error_reply

_UPGRADE_HEADERS = (b"connection", b"upgrade", b"http2-settings")
_STATUS_LINES = {400: b"HTTP/1.1 400 Bad Request\r\n", 408: b"HTTP/1.1 408 Request Timeout\r\n"}


class Connection(HttpToolsProtocol):  # type: ignore[misc]  # uvicorn is not analysed, see pyproject.toml
    """One client connection: uvicorn's, and what uvicorn leaves to a proxy in front of it.

    A client must send its headers, and the rest of a body that was refused, within a time, and must not stop
    reading a large answer. What is no HTTP at all is answered in JSON like every other error. An offer to
    change the protocol is ignored, as HTTP allows: Java's HttpClient offers HTTP/2 with every first request,
    and the parser takes no body after it.
    """

    patience_seconds: float
    parser: Any

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a first request."""
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._in_headers = self._in_body = False
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and a request that offers an upgrade once more without the offer."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(InvalidArgument("expected an HTTP/1.1 request, got something else"))
            return
        if self._in_headers and self._deadline is None:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._disarm()
        self._end_stall()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Note that the headers of a request have begun."""
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """Leave the waiting to the application, which knows what the body is for."""
        self._disarm()
        self._in_headers, self._in_body = False, True
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the rest of a request that was answered before its end."""
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete:
            self._arm()

    def on_message_complete(self) -> None:
        """Stop waiting."""
        self._disarm()
        self._in_body = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

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
            self._stall = self.loop.call_later(self.patience_seconds, self._watch_stall, left_bytes)

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

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(self.patience_seconds, self._give_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._in_headers:
            self._refuse(BodyTimeout(f"expected all headers within {self.patience_seconds:g} s; send them faster"))
        else:
            self.transport.close()

    def _refuse(self, error: ServePruneError) -> None:
        reply = error_reply(error)
        lines = [_STATUS_LINES[reply.status]]
        headers = [*reply.headers, (b"content-length", b"%d" % sum(map(len, reply.parts))), (b"connection", b"close")]
        lines += [b"%s: %s\r\n" % header for header in dict(headers).items()]
        self.transport.write(b"".join([*lines, b"\r\n", *reply.parts]))
        self.transport.close()


def connection_class(*, patience_seconds: float) -> type[Any]:
    """Return the connection class of one server; uvicorn constructs the connections itself."""
    return type("Connection", (Connection,), {"patience_seconds": patience_seconds})
