from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serveprune.errors import ServePruneError
from serveprune.frontends.http.asgi import Header, Send
from serveprune.frontends.http.errors import headers_of, status_of

_JSON = (b"content-type", b"application/json")
_JOIN_BELOW_BYTES = 65536
_MAX_MESSAGE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP response; its body may be in parts that need not be copied together."""

    status: int
    headers: Sequence[Header]
    parts: Sequence[bytes | memoryview]

    async def send(self, send: Send) -> None:
        """Send it, as few writes as its size makes sensible."""
        total_bytes = sum(map(len, self.parts))
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
