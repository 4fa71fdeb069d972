from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from serveprune.errors import InvalidArgument
from serveprune.frontends.http.errors import MethodNotAllowed, NoSuchPath


class Operation(StrEnum):
    """What a path asks for."""

    SERVER_METADATA = "server metadata"
    LIVE = "live"
    READY = "ready"
    MODEL_METADATA = "model metadata"
    MODEL_READY = "model ready"
    INFER = "infer"
    TIERS = "tiers"
    REPOSITORY_INDEX = "repository index"
    LOAD = "repository load"
    UNLOAD = "repository unload"


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """Where a request goes; ``model`` is empty for operations on the whole server."""

    operation: Operation
    model: str = ""
    version: str | None = None


_OF_SERVER: Mapping[tuple[bytes, ...], HttpRoute] = {
    (): HttpRoute(Operation.SERVER_METADATA),
    (b"health", b"live"): HttpRoute(Operation.LIVE),
    (b"health", b"ready"): HttpRoute(Operation.READY),
    (b"repository", b"index"): HttpRoute(Operation.REPOSITORY_INDEX),
}
_OF_MODEL: Mapping[tuple[bytes, ...], Operation] = {
    (): Operation.MODEL_METADATA,
    (b"ready",): Operation.MODEL_READY,
    (b"infer",): Operation.INFER,
    (b"tiers",): Operation.TIERS,
}
_OF_REPOSITORY: Mapping[bytes, Operation] = {b"load": Operation.LOAD, b"unload": Operation.UNLOAD}
_READ = ("GET", "HEAD")
_WRITE = ("POST",)
_METHODS: Mapping[Operation, tuple[str, ...]] = {
    operation: _WRITE
    if operation in (Operation.INFER, Operation.REPOSITORY_INDEX, Operation.LOAD, Operation.UNLOAD)
    else _READ
    for operation in Operation
}


def find_route(method: str, raw_path: bytes) -> HttpRoute:
    """Return where a request goes; ``raw_path`` is still percent-encoded, a slash at its end does not count.

    Raises:
        NoSuchPath: The path is none of the protocol's.
        MethodNotAllowed: It is, but not for this method.
        InvalidArgument: A name in it is no UTF-8.
    """
    route = _match(raw_path)
    if route is None:
        raise NoSuchPath(f"no such path: {_shown(raw_path)}; the protocol begins at /v2")
    allowed = _METHODS[route.operation]
    if method not in allowed:
        raise MethodNotAllowed(
            f"{_shown(raw_path)}: expected {' or '.join(allowed)}, got {method[:20]}", allowed=allowed
        )
    return route


def _match(raw_path: bytes) -> HttpRoute | None:
    segments = tuple(raw_path.removesuffix(b"/").split(b"/"))
    if segments[:2] != (b"", b"v2"):
        return None
    if segments[2:4] == (b"repository", b"models"):
        change = _OF_REPOSITORY.get(segments[-1]) if len(segments) == 6 and segments[4] else None
        return HttpRoute(change, _name(segments[4])) if change is not None else None
    if segments[2:3] != (b"models",):
        return _OF_SERVER.get(segments[2:])
    if len(segments) < 4 or not segments[3]:
        return None
    model, rest, version = _name(segments[3]), segments[4:], None
    if rest[:1] == (b"versions",) and len(rest) >= 2 and rest[1]:
        version, rest = _name(rest[1]), rest[2:]
    operation = _OF_MODEL.get(rest)
    if operation is None:
        return None
    return HttpRoute(operation, model, version)


def _name(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"expected percent-encoded UTF-8 in the path, got {_shown(segment)}") from None


def _shown(raw: bytes) -> str:
    return raw[:200].decode("ascii", errors="replace")
