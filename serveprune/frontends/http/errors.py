"""What can be wrong with an HTTP request before it is an inference, and the status of every error."""

import math
from collections.abc import Mapping, Sequence

from serveprune.errors import (
    Code,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    ServePruneError,
    Unimplemented,
)
from serveprune.frontends.http.asgi import Header


class NoSuchPath(NotFound):
    """The path is none of the protocol's."""


class MethodNotAllowed(Unimplemented):
    """The path exists, but not for this method."""

    def __init__(self, message: str, *, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class UnsupportedMediaType(InvalidArgument):
    """The body's type or coding is none the server, or the model, can read."""


class BodyTimeout(DeadlineExceeded):
    """The client took too long to send its body."""


class HeadersTooLarge(InvalidArgument):
    """The headers are too many, or too long."""


class UrlTooLong(InvalidArgument):
    """The URL is longer than any of the protocol's."""


_STATUS_OF_TYPE: Mapping[type[ServePruneError], int] = {
    MethodNotAllowed: 405,
    BodyTimeout: 408,
    MessageTooLarge: 413,
    UrlTooLong: 414,
    UnsupportedMediaType: 415,
    HeadersTooLarge: 431,
}
_STATUS_OF_CODE: Mapping[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.NOT_FOUND: 404,
    # Not 400: the request is in order, and would succeed if the server were in another state.
    Code.FAILED_PRECONDITION: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    # nginx's "client closed request"; seen in logs only, since nobody is left to read it.
    Code.CANCELLED: 499,
    Code.DATA_LOSS: 500,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
_TEMPORARY = (429, 503)
_RETRY_SECONDS = 1.0


def status_of(error: ServePruneError) -> int:
    """Return the HTTP status an error becomes."""
    return _STATUS_OF_TYPE.get(type(error)) or _STATUS_OF_CODE[error.code]


def headers_of(error: ServePruneError) -> list[Header]:
    """Return the headers an error's status asks for: Allow, Retry-After, Connection, WWW-Authenticate."""
    if error.code is Code.UNAUTHENTICATED:
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", ", ".join(error.allowed).encode())]
    if isinstance(error, BodyTimeout):
        return [(b"connection", b"close")]
    if status_of(error) in _TEMPORARY:
        seconds = _RETRY_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
        return [(b"retry-after", str(max(1, math.ceil(seconds))).encode())]
    return []
