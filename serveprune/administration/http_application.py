import asyncio
import logging
from concurrent.futures import Executor
from functools import partial
from typing import Any

import orjson

from serveprune.administration.administration import Administration
from serveprune.administration.http_routes import WRITING, AdminRoute, find_admin_route
from serveprune.administration.operation import AdminOperation
from serveprune.administration.operator import Operator, operator_of
from serveprune.administration.refusals import Refusals
from serveprune.errors import Code, Internal, InvalidArgument, ServePruneError, Unavailable
from serveprune.frontends.authorization import Authorization, shown_in
from serveprune.frontends.http.asgi import Receive, Scope, Send
from serveprune.frontends.http.errors import headers_of, status_of
from serveprune.frontends.http.operator_bodies import OperatorBodies
from serveprune.frontends.http.reply import Reply, error_reply, json_reply
from serveprune.oip.parameters import kind

_log = logging.getLogger(__name__)

_MAX_BODIES_BYTES = 2**22
_FOR_THE_LOG = (Code.INTERNAL, Code.DATA_LOSS)


class AdminHttpApplication:
    """The admin API as an ASGI application. Whatever is asked, a token comes first."""

    def __init__(
        self,
        administration: Administration,
        authorization: Authorization,
        refusals: Refusals,
        *,
        workers: Executor,
        body_timeout_seconds: float,
    ) -> None:
        """Describe it.

        Args:
            administration: Answers.
            authorization: Judges who may ask.
            refusals: Notes who may not.
            workers: Run what is asked for; the event loop only reads and writes.
            body_timeout_seconds: Within which a body must come.
        """
        self._administration = administration
        self._authorization = authorization
        self._refusals = refusals
        self._workers = workers
        self._bodies = OperatorBodies(max_together_bytes=_MAX_BODIES_BYTES, timeout_seconds=body_timeout_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        operation: AdminOperation | None = None
        failure: ServePruneError | None = None
        try:
            self._authorize(scope)
            route = find_admin_route(scope["method"], scope["raw_path"], scope["query_string"])
            operation = route.operation
            body = await self._bodies.read(scope["headers"], receive) if operation in WRITING else b""
            reply, failure = await self._answer(route, body, peer=_peer(scope))
        except ServePruneError as error:
            failure = error
            reply = error_reply(error)
        except asyncio.CancelledError:
            # Only the end of a stop's patience cancels this task, and the caller should hear of it.
            failure = Unavailable("the server is shutting down", retry_after_seconds=1.0)
            reply = error_reply(failure)
        except Exception:  # whatever it is, the client gets an answer and the log gets the trace
            _log.exception("admin: %s %r failed", scope["method"], scope["path"])
            failure = Internal("internal error; see the server's log")
            reply = error_reply(failure)
        if failure is not None and failure.code in _FOR_THE_LOG:
            _log.error("admin: %s %r: %s", scope["method"], scope["path"], failure.message)
        self._administration.count(operation, failure)
        await reply.send(send)

    def _authorize(self, scope: Scope) -> None:
        refusal = self._authorization.refusal(shown_in(scope["headers"]))
        if refusal is not None:
            asked = f"{scope['method']} {scope['path']}"
            self._refusals.note(refusal, protocol="http", peer=_peer(scope), asked=asked)
            raise refusal

    async def _answer(self, route: AdminRoute, body: bytes, *, peer: str) -> tuple[Reply, ServePruneError | None]:
        """Return the reply, and the error that it is of, if it is more than the error alone."""
        asked = self._administration
        match route.operation:
            case AdminOperation.CONFIG:
                return json_reply(await self._run(asked.config)), None
            case AdminOperation.RELOAD:
                operator = _operator(body, needs_name=False) if body else Operator("")
                document, error = await self._run(partial(asked.reload, operator, peer=peer))
                if error is None:
                    return json_reply(document), None
                document = {"error": error.message, **document}
                return json_reply(document, status=status_of(error), headers=headers_of(error)), error
            case AdminOperation.ROLLOUTS:
                return json_reply(await self._run(asked.rollouts)), None
            case AdminOperation.ROLLOUT:
                return json_reply(await self._run(partial(asked.rollout, route.model))), None
            case AdminOperation.CHANGES:
                return json_reply(await self._run(asked.changes)), None
            case act:
                operator = _operator(body)
                return json_reply(await self._run(partial(asked.act, act, route.model, operator, peer=peer))), None

    async def _run(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _operator(body: bytes, *, needs_name: bool = True) -> Operator:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(
            f'body: expected JSON such as {{"who": "ada", "why": "..."}}; {error.msg} at byte {error.pos}'
        ) from None
    if not isinstance(fields, dict):
        raise InvalidArgument(f"body: expected a JSON object, got {kind(fields)}")
    return operator_of(fields, where="body", needs_name=needs_name)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    if not client:
        return "unknown"
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
