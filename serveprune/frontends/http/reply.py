from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serveprune.errors import ServePruneError
from serveprune.frontends.http.asgi import Header, Send
from serveprune.frontends.http.errors import headers_of, status_of

_JSON = (b"content-type", b"application/json")
_JOIN_BELOW_BYTES = 65536
_MAX_MESSAGE_CHARACTERS = 4096


@dataclass(slots=True)
class Reply:
    """A complete HTTP response, which nobody changes; its body may be in parts that need not be copied together."""

    status: int
    headers: Sequence[Header]
    parts: Sequence[bytes | memoryview]

    @property
    def size_bytes(self) -> int:
        """Bytes of the body."""
        return sum(map(len, self.parts))

    def head(self, more_headers: Sequence[Header], *, closes: bool) -> bytes:
        """Return the status line and the headers as they go on the wire.

        Args:
            more_headers: Come first.
            closes: Whether the connection ends with this reply.
        """
        lines: list[bytes] = [STATUS_LINE[self.status]]
        for name, value in more_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in self.headers:
            if name != b"connection":
                lines += (name, b": ", value, b"\r\n")
        lines.append(b"connection: close\r\n" if closes else b"")
        lines.append(b"content-length: %d\r\n\r\n" % self.size_bytes)
        return b"".join(lines)

    async def send(self, send: Send) -> None:
        """Send it, as few writes as its size makes sensible."""
        total_bytes = self.size_bytes
        headers = [*self.headers, (b"content-length", b"%d" % total_bytes)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        parts = [b"".join(self.parts)] if total_bytes < _JOIN_BELOW_BYTES else self.parts
        for part in parts[:-1]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": parts[-1]})


def json_reply(document: Any, *, status: int = 200, headers: Sequence[Header] = ()) -> Reply:
    """Return a document as a reply."""
    return Reply(status, (_JSON, *headers), (orjson.dumps(document),))


def error_reply(error: ServePruneError) -> Reply:
    """Return the reply of an error, always ``{"error": message}``."""
    # A message may quote what a client sent, which may be megabytes.
    message = error.message[:_MAX_MESSAGE_CHARACTERS]
    return json_reply({"error": message}, status=status_of(error), headers=headers_of(error))
