import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from serveprune.config.server import ServerConfig
from serveprune.errors import Code, Internal, ServePruneError, Unavailable
from serveprune.frontends.authorization import Authorization, shown_in
from serveprune.frontends.http.asgi import Receive, Scope, Send
from serveprune.frontends.http.body import inflate, read_body
from serveprune.frontends.http.body_budget import BodyBudget
from serveprune.frontends.http.inference import InferenceHandler
from serveprune.frontends.http.observation import HttpObservation, answered
from serveprune.frontends.http.page import Page, guarded, is_of_page
from serveprune.frontends.http.reply import Reply, error_reply, json_reply
from serveprune.frontends.http.request_headers import parse_headers
from serveprune.frontends.http.routes import HttpRoute, Operation, find_route
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.frontends.planes import ControlPlane, DataPlane
from serveprune.oip.json_codec import parse_object
from serveprune.oip.json_documents import (
    model_metadata_document,
    repository_index_document,
    server_metadata_document,
)
from serveprune.oip.parameters import flag
from serveprune.oip.repository_requests import expect_no_overrides

_log = logging.getLogger(__name__)

_FOR_THE_LOG = (Code.INTERNAL, Code.DATA_LOSS)
_FOR_EVERYBODY = (Operation.LIVE, Operation.READY)
"""What needs no token: probes have none, and it tells nothing of the models."""


class HttpApplication:
    """The Open Inference Protocol as an ASGI application.

    Large bodies are decoded and encoded on ``workers``; everything else runs on the event loop.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        controlplane: ControlPlane,
        *,
        config: ServerConfig,
        workers: Executor,
        on_rejected: Callable[[Code], None],
        authorization: Authorization | None = None,
        page: Page | None = None,
        observation: HttpObservation | None = None,
    ) -> None:
        self._observation = observation
        self._dataplane = dataplane
        self._controlplane = controlplane
        self._config = config
        self._authorization = authorization
        self._page = page
        # A body as large as one may be always finds room in an idle server.
        self._budget = BodyBudget(max(config.max_buffered_bytes, config.max_request_bytes))
        self.inference = InferenceHandler(
            dataplane, config=config, budget=self._budget, workers=workers, on_rejected=on_rejected
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what a client that has left is sent, the server drops."""
        observed = self._observed(scope)
        try:
            reply = await self._answer(scope, receive, observed)
        except ServePruneError as error:
            if observed is not None:
                observed.failed(error)
            reply = error_reply(error)
        if self._page is not None and is_of_page(scope["raw_path"]):
            reply = guarded(reply)
        if observed is not None:
            reply = answered(observed, reply)
        await reply.send(send)

    def _observed(self, scope: Scope) -> ObservedRequest | None:
        """Begin to record an inference, where that is wanted."""
        if self._observation is None:
            return None
        try:
            route = find_route(scope["method"], scope["raw_path"])
        except ServePruneError:
            return None
        return self._observation.begin(route, scope["headers"]) if route.operation is Operation.INFER else None

    async def _answer(self, scope: Scope, receive: Receive, observed: ObservedRequest | None) -> Reply:
        """Answer one request.

        Raises:
            ServePruneError: It cannot be answered; nothing else is raised.
        """
        try:
            if self._page is not None and is_of_page(scope["raw_path"]):
                return await self._page.reply(scope, receive)
            route = find_route(scope["method"], scope["raw_path"])
            if self._authorization is not None:
                self._authorize(self._authorization, route, scope)
            if route.operation is Operation.INFER:
                return await self.inference.answer(route, scope["headers"], receive, observed=observed)
            return await self._describe(route, scope, receive)
        except ServePruneError as error:
            if error.code in _FOR_THE_LOG:
                _log.error("%s %s: %s", scope["method"], scope["path"], error.message)
            raise
        except asyncio.CancelledError:
            # Only the end of a stop's patience cancels this task, and the caller should hear of it.
            raise Unavailable("the server is shutting down", retry_after_seconds=1.0) from None
        except Exception:  # whatever it is, the client gets an answer and the log gets the trace
            _log.exception("%s %s failed", scope["method"], scope["path"])
            raise Internal("internal error; see the server's log") from None

    def _authorize(self, authorization: Authorization, route: HttpRoute, scope: Scope) -> None:
        """Refuse a request that shows no token, before its body is read."""
        if route.operation in _FOR_EVERYBODY:
            return
        refusal = authorization.refusal(shown_in(scope["headers"]))
        if refusal is not None:
            if route.operation is Operation.INFER:
                self.inference.reject(refusal.code)
            raise refusal

    async def _describe(self, route: HttpRoute, scope: Scope, receive: Receive) -> Reply:
        plane, model, version = self._dataplane, route.model, route.version
        match route.operation:
            case Operation.LIVE:
                live = plane.live()
                return json_reply({"live": live}, status=200 if live else 503)
            case Operation.READY:
                ready = plane.ready()
                return json_reply({"ready": ready}, status=200 if ready else 503)
            case Operation.MODEL_READY:
                ready = plane.model_ready(model, version=version)
                return json_reply({"name": model, "ready": ready}, status=200 if ready else 503)
            case Operation.SERVER_METADATA:
                return json_reply(server_metadata_document(plane.server_metadata()))
            case Operation.MODEL_METADATA:
                return json_reply(model_metadata_document(plane.model_metadata(model, version=version)))
            case Operation.TIERS:
                return json_reply(self._controlplane.tiers(model, version=version))
            case Operation.LOAD | Operation.UNLOAD:
                return await self._change(route, scope, receive)
            case _:
                document = await self._document(route, scope, receive)
                ready_only = flag(document.get("ready", False), where="repository index: ready")
                return json_reply(repository_index_document(self._controlplane.index(ready_only=ready_only)))

    async def _change(self, route: HttpRoute, scope: Scope, receive: Receive) -> Reply:
        """Load or unload a model. It goes on when the client leaves, for it may not be the only one that asked."""
        document = await self._document(route, scope, receive)
        expect_no_overrides(document.get("parameters"), loads=route.operation is Operation.LOAD)
        change = self._controlplane.load if route.operation is Operation.LOAD else self._controlplane.unload
        await asyncio.shield(asyncio.wrap_future(change(route.model)))
        return json_reply({})

    async def _document(self, route: HttpRoute, scope: Scope, receive: Receive) -> dict[str, Any]:
        headers = parse_headers(scope["headers"])
        limit = self._config.max_request_bytes
        with self._budget.share() as take:
            body = await read_body(
                receive,
                take=take,
                declared_bytes=headers.body_bytes,
                max_bytes=limit,
                timeout_seconds=self._config.body_timeout_seconds,
            )
        body = inflate(body, coding=headers.coding, max_bytes=limit)
        # tritonclient sends no body at all with an index request.
        return dict(parse_object(body, where=route.operation.value)) if body else {}
