"""The page at ``/ui``: its files, the document it shows, and its way to the admin API."""

import asyncio
import hashlib
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import resources

import orjson

from serveprune.frontends.authorization import Authorization, shown_in
from serveprune.frontends.http.asgi import Header, Receive, Scope
from serveprune.frontends.http.errors import MethodNotAllowed, NoSuchPath
from serveprune.frontends.http.operator_bodies import OperatorBodies
from serveprune.frontends.http.operator_call import AskOperators, OperatorCall
from serveprune.frontends.http.reply import Reply
from serveprune.frontends.planes import PageData

_ROOT = b"/ui"
_STATE = b"/ui/state"
_OPERATORS = b"/ui/admin/"
_INDEX = "index.html"
_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_FRESH_SECONDS = 1.0
"""However many look at the page, what it shows is made no more often than that."""
_MAX_BODIES_BYTES = 2**20

# Nothing of another origin, nothing inline, no text taken for HTML: what a config or a client wrote stays text.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_SECURITY: tuple[Header, ...] = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_CACHE_CONTROL = b"cache-control"
_UNKEPT: Header = (_CACHE_CONTROL, b"no-store")
_ASKED_EACH_TIME: Header = (_CACHE_CONTROL, b"no-cache")
"""A browser may keep it, and asks whether it is still the same."""


def is_of_page(raw_path: bytes) -> bool:
    """Tell whether a path is the page's, whether or not there is something."""
    return raw_path.startswith(_ROOT) and raw_path[len(_ROOT) : len(_ROOT) + 1] in (b"", b"/")


def guarded(reply: Reply) -> Reply:
    """Return a reply of the page, be it an error, with what keeps browsers from doing more with it than is meant."""
    says_who_keeps_it = any(name == _CACHE_CONTROL for name, _ in reply.headers)
    return Reply(reply.status, (*reply.headers, *_SECURITY, *(() if says_who_keeps_it else (_UNKEPT,))), reply.parts)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    content_type: bytes
    tag: bytes


class Page:
    """Answers what begins with ``/ui``. Of one event loop."""

    def __init__(
        self,
        data: PageData,
        *,
        workers: Executor,
        authorization: Authorization | None,
        ask_operators: AskOperators | None,
        body_timeout_seconds: float,
    ) -> None:
        """Read its files.

        Args:
            data: What it shows.
            workers: Make the document of it.
            authorization: Judges who may see that; the files themselves are for everybody.
            ask_operators: See `HttpFrontend`.
            body_timeout_seconds: Within which the body of a call to the admin API must come.
        """
        self._data = data
        self._workers = workers
        self._authorization = authorization
        self._ask_operators = ask_operators
        self._bodies = OperatorBodies(max_together_bytes=_MAX_BODIES_BYTES, timeout_seconds=body_timeout_seconds)
        self._files = _read_files()
        self._document: asyncio.Future[bytes] | None = None
        self._asked_at = 0.0

    async def reply(self, scope: Scope, receive: Receive) -> Reply:
        """Return what a request gets; it goes out `guarded`.

        Raises:
            ServePruneError: It gets nothing.
        """
        path: bytes = scope["raw_path"]
        if self._ask_operators is not None and path.startswith(_OPERATORS):
            return await self._operate(self._ask_operators, scope, receive)
        if path == _ROOT:
            # What the page asks for is seen from this folder, wherever a proxy shows it.
            _expect_reading(scope)
            return Reply(308, ((b"location", b"ui/"), _ASKED_EACH_TIME), (b"",))
        if path == _STATE:
            _expect_reading(scope)
            refusal = self._authorization.refusal(shown_in(scope["headers"])) if self._authorization else None
            if refusal is not None:
                raise refusal
            return Reply(200, ((b"content-type", b"application/json"),), (await self._state(),))
        name = path.removeprefix(_ROOT + b"/").decode("ascii", errors="replace") or _INDEX
        file = self._files.get(name)
        if file is None:
            raise NoSuchPath(f"no such path: {path[:200].decode('ascii', errors='replace')}; the page is at /ui")
        _expect_reading(scope)
        headers = ((b"content-type", file.content_type), (b"etag", file.tag), _ASKED_EACH_TIME)
        if _names(scope, file.tag):
            return Reply(304, headers[1:], (b"",))
        return Reply(200, headers, (file.content,))

    async def _state(self) -> bytes:
        """Return the document, made now or a moment ago, and by one worker whoever waits for it."""
        loop = asyncio.get_running_loop()
        making = self._document
        if making is None or (making.done() and loop.time() - self._asked_at >= _FRESH_SECONDS):
            self._asked_at = loop.time()
            self._document = making = loop.run_in_executor(self._workers, self._make)
        return await asyncio.shield(making)

    def _make(self) -> bytes:
        return orjson.dumps(self._data.document())

    async def _operate(self, ask: AskOperators, scope: Scope, receive: Receive) -> Reply:
        """Hand a call on to the admin API, which looks at its token first."""
        shown = shown_in(scope["headers"])
        # Whoever shows no token gets no further, whatever else they send.
        body = await self._bodies.read(scope["headers"], receive) if shown else b""
        call = OperatorCall(
            scope["method"],
            scope["raw_path"].decode("latin-1").removeprefix("/ui"),
            scope["query_string"].decode("latin-1"),
            tuple(value.decode("latin-1") for value in shown),
            body.decode("latin-1"),
            scope.get("client"),
        )
        answer = await asyncio.shield(asyncio.wrap_future(ask(call)))
        told = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers)
        return Reply(answer.status, told, (answer.body.encode("latin-1"),))


def _read_files() -> Mapping[str, _File]:
    files = {}
    for entry in resources.files("serveprune.frontends.http").joinpath("ui").iterdir():
        content_type = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if content_type is not None:
            content = entry.read_bytes()
            files[entry.name] = _File(
                content, content_type, b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
            )
    return files


def _expect_reading(scope: Scope) -> None:
    if scope["method"] not in ("GET", "HEAD"):
        raise MethodNotAllowed(
            f"{scope['path'][:200]}: expected GET or HEAD, got {scope['method'][:20]}", allowed=("GET", "HEAD")
        )


def _names(scope: Scope, tag: bytes) -> bool:
    """Tell whether the client has what has this tag."""
    return any(
        tag in (part.strip().removeprefix(b"W/") for part in value.split(b","))
        for name, value in scope["headers"]
        if name == b"if-none-match"
    )
