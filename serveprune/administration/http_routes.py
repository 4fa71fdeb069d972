from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from serveprune.administration.operation import ACTS, AdminOperation
from serveprune.errors import InvalidArgument
from serveprune.frontends.http.errors import MethodNotAllowed, NoSuchPath


@dataclass(frozen=True, slots=True)
class AdminRoute:
    """What a path asks for; ``model`` is empty where it is of the whole server."""

    operation: AdminOperation
    model: str = ""


_OF_SERVER: Mapping[tuple[bytes, ...], AdminRoute] = {
    (b"config",): AdminRoute(AdminOperation.CONFIG),
    (b"config", b"reload"): AdminRoute(AdminOperation.RELOAD),
    (b"rollouts",): AdminRoute(AdminOperation.ROLLOUTS),
    (b"rollouts", b"changes"): AdminRoute(AdminOperation.CHANGES),
}
_OF_ROLLOUT: Mapping[tuple[bytes, ...], AdminOperation] = {
    (): AdminOperation.ROLLOUT,
    **{(act.action.encode(),): act for act in ACTS},
}
WRITING = (AdminOperation.RELOAD, *ACTS)
"""What changes something, and takes a body."""


def find_admin_route(method: str, raw_path: bytes, query: bytes) -> AdminRoute:
    """Return what a request asks for; ``raw_path`` is still percent-encoded, a slash at its end does not count.

    Raises:
        NoSuchPath: The path is none of the API's.
        MethodNotAllowed: It is, but not for this method.
        InvalidArgument: A name in it is no UTF-8, or there is a query.
    """
    route = _match(raw_path)
    if route is None:
        raise NoSuchPath(f"no such path: {_shown(raw_path)}; there are /admin/config and /admin/rollouts")
    allowed = ("POST",) if route.operation in WRITING else ("GET", "HEAD")
    if method not in allowed:
        raise MethodNotAllowed(
            f"{_shown(raw_path)}: expected {' or '.join(allowed)}, got {method[:20]}", allowed=allowed
        )
    if query:
        raise InvalidArgument(f"{_shown(raw_path)}: expected no query after the path, got ?{_shown(query)}")
    return route


def _match(raw_path: bytes) -> AdminRoute | None:
    segments = tuple(raw_path.removesuffix(b"/").split(b"/"))
    if segments[:2] != (b"", b"admin"):
        return None
    route = _OF_SERVER.get(segments[2:])
    if route is not None:
        return route
    if segments[2:3] != (b"rollouts",) or len(segments) < 4 or not segments[3]:
        return None
    operation = _OF_ROLLOUT.get(segments[4:])
    return AdminRoute(operation, _name(segments[3])) if operation is not None else None


def _name(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"expected percent-encoded UTF-8 in the path, got {_shown(segment)}") from None


def _shown(raw: bytes) -> str:
    return raw[:200].decode("ascii", errors="replace")
