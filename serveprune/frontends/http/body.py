"""Reading a request's body: bounded in size, in time, and in what it may inflate to."""

import asyncio
import zlib

from serveprune.errors import Cancelled, InvalidArgument, MessageTooLarge
from serveprune.frontends.http.asgi import Receive
from serveprune.frontends.http.body_budget import Take
from serveprune.frontends.http.errors import BodyTimeout, UnsupportedMediaType

Body = bytes | bytearray

_AUTOMATIC = zlib.MAX_WBITS | 32
"""gzip or zlib, as the first bytes say."""
_CODINGS = (b"gzip", b"x-gzip", b"deflate")


async def read_body(
    receive: Receive, *, take: Take, declared_bytes: int | None, max_bytes: int, timeout_seconds: float
) -> Body:
    """Read a body to its end.

    Args:
        receive: Of the request.
        take: Takes what has come from the budget; what is only announced costs no memory.
        declared_bytes: The Content-Length, if there is one.
        max_bytes: Bound on this body.
        timeout_seconds: Within which all of it must come.

    Raises:
        MessageTooLarge: It is, or says it is, larger than ``max_bytes``.
        ResourceExhausted: Too many bytes of other bodies are held.
        BodyTimeout: It was not complete after ``timeout_seconds``.
        Cancelled: The client left before the end.
    """
    if declared_bytes is not None and declared_bytes > max_bytes:
        raise _too_large(declared_bytes, max_bytes)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _read(receive, take, max_bytes)
    except TimeoutError:
        raise BodyTimeout(f"expected the whole body within {timeout_seconds:g} s; send it faster") from None


async def _read(receive: Receive, take: Take, max_bytes: int) -> Body:
    body: Body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before its body was complete")
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(len(body) + len(chunk), max_bytes)
        take(len(chunk))
        if not body:
            body = chunk
        else:
            # Grows in place: joining a list of chunks would need the memory twice.
            body = bytearray(body) if isinstance(body, bytes) else body
            body += chunk
        if not message.get("more_body", False):
            return body


def inflate(body: Body, *, coding: bytes, max_bytes: int) -> Body:
    """Undo a Content-Encoding, without ever holding more than ``max_bytes`` of the result.

    Raises:
        UnsupportedMediaType: The coding is none of identity, gzip and deflate.
        MessageTooLarge: The result is larger than ``max_bytes``.
        InvalidArgument: The body is damaged or cut short, or goes on after its end.
    """
    if coding == b"identity":
        return body
    if coding not in _CODINGS:
        raise UnsupportedMediaType(
            f"Content-Encoding: expected gzip, deflate or identity, got {coding[:40].decode('latin-1')!r}"
        )
    inflater = zlib.decompressobj(_AUTOMATIC)
    try:
        # max_length 0 would mean no bound.
        inflated = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidArgument(f"body: expected {coding.decode()} as Content-Encoding says: {error}") from None
    if len(inflated) > max_bytes:
        raise _too_large(len(inflated), max_bytes)
    if not inflater.eof or inflater.unused_data:
        where = "goes on after" if inflater.eof else "ends before"
        raise InvalidArgument(f"body: the {coding.decode()} data {where} its own end")
    return inflated


def _too_large(found_bytes: int, max_bytes: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"body: expected at most {max_bytes} bytes (server.max_request_bytes), got {found_bytes} or more"
    )
