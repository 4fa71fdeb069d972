"""The deployment that takes requests: a `Server` without front ends of its own, behind Ray Serve's proxies."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from serveprune.errors import Internal, ServePruneError
from serveprune.frontends.authorization import shown_in_metadata
from serveprune.frontends.grpc.inference import InferenceService
from serveprune.frontends.grpc.methods import parse_message
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.grpc.status import details_of, trailing_metadata_of
from serveprune.frontends.http.application import HttpApplication
from serveprune.frontends.http.asgi import Receive, Scope, Send
from serveprune.frontends.http.pending_answer import PendingAnswer
from serveprune.handlers.own_page import OwnPage
from serveprune.handlers.ray_serve.accepted_sections import AcceptedSections
from serveprune.handlers.ray_serve.computing import RayComputing
from serveprune.handlers.ray_serve.config_source import ConfigSource
from serveprune.handlers.ray_serve.packing import Pack
from serveprune.handlers.ray_serve.reconfiguring import Reconfiguring
from serveprune.handlers.ray_serve.settings import RaySettings
from serveprune.models.variant import VariantState
from serveprune.server import Server

_log = logging.getLogger(__name__)

_WORKERS = 4
_INLINE_BYTES = 2**16
_ACCEPTED = "user_config.json"
_START_SECONDS = 20.0
"""So long an ingress waits for tiers at its start; there may be no room for some."""

_FOR_EVERYBODY = ("ServerLive", "ServerReady")


class _Asgi:
    """The HTTP front end as Ray Serve expects it: with a lifespan, and perhaps below a prefix."""

    def __init__(self, application: HttpApplication) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        prefix = scope.get("root_path", "").encode()
        if prefix and scope["raw_path"].startswith(prefix):
            scope = {**scope, "raw_path": scope["raw_path"][len(prefix) :]}
        await self._application(scope, receive, send)


@dataclass(frozen=True, slots=True)
class _Serialized:
    """A serialized message where Ray Serve expects one that it serializes."""

    content: bytes = b""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Return it."""
        return self.content


class Ingress:
    """One process that takes requests. Ray calls its methods on an event loop."""

    def __init__(
        self,
        source: ConfigSource,
        settings: RaySettings,
        *,
        packs: Mapping[str, Pack],
        handles: Mapping[str, DeploymentHandle],
        in_flight: Mapping[str, int],
        folder: Path,
    ) -> None:
        """Assemble a server whose variants are those of the deployments, and begin to bring them up.

        Args:
            source: Of the config.
            settings: Beside it.
            packs: What each deployment of tiers has.
            handles: Of each of them.
            in_flight: Batches that may be on their way to each of them.
            folder: In the store; holds the `user_config` that was applied last, and what replicas have loaded.
        """
        config = source.config()
        self._computing = RayComputing(
            config, settings, packs=packs, handles=handles, in_flight=in_flight, folder=folder
        )
        self._server = server = Server(config, elsewhere=self._computing)
        self._config = config.server
        self._reconfiguring = Reconfiguring(
            server, source, AcceptedSections(folder / _ACCEPTED), deployed=self._computing.deployments
        )
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="ingress")
        # One after the other, in the order in which they come.
        self._reconfigurer = ThreadPoolExecutor(1, thread_name_prefix="reconfigure")
        self._http = HttpApplication(
            server.dataplane,
            server.controlplane,
            config=config.server,
            workers=self._workers,
            on_rejected=server.dataplane.count_rejection,
            authorization=server.authorization,
        )
        self._grpc = InferenceService(
            server.dataplane,
            server.controlplane,
            request_timeout_seconds=config.server.request_timeout_seconds,
            on_rejected=server.dataplane.count_rejection,
        )
        if settings.metrics is not None:
            OwnPage(server.metrics.registry, settings.metrics)
        server.load()

    def __serve_build_asgi_app__(self) -> Callable[..., Any]:
        """Return what Ray Serve hands HTTP requests to."""
        return _Asgi(self._http)

    async def reconfigure(self, user_config: object) -> None:
        """Take sections of `serveprune.yaml`; see `Reconfiguring`."""
        await asyncio.get_running_loop().run_in_executor(
            self._reconfigurer, self._reconfiguring.reconfigure, user_config
        )

    async def check_health(self) -> None:
        """Wait, at the first time, until what the store has serves: Ray sends nothing here before it has been told.

        Where an ingress takes the place of another one, nobody is turned away by one that has not loaded anything yet.
        """
        if not self._reconfiguring.has_started:
            await asyncio.get_running_loop().run_in_executor(
                self._workers, self._server.controlplane.wait_for, _has_looked, _START_SECONDS
            )
            self._reconfiguring.has_started = True

    async def ModelInfer(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802 - RPC's name
        """Answer an inference over gRPC."""
        try:
            self._authorize("ModelInfer", grpc_context)
        except ServePruneError as error:
            self._server.dataplane.count_rejection(error.code)
            return _failed(error, grpc_context)
        try:
            return await self._infer(request, grpc_context)
        except ServePruneError as error:
            return _failed(error, grpc_context)
        except Exception:  # whatever it is, the caller must not see it
            _log.exception("unexpected failure in a call of ModelInfer")
            return _failed(_unexpected(), grpc_context)

    async def _infer(self, message: bytes, context: RayServegRPCContext) -> _Serialized:
        deadline = time.time() + self._config.request_timeout_seconds
        service, loop = self._grpc, asyncio.get_running_loop()
        try:
            if len(message) <= _INLINE_BYTES:
                request = service.decode(message, metadata=context.invocation_metadata(), deadline=deadline)
            else:
                request = await loop.run_in_executor(
                    self._workers,
                    lambda: service.decode(message, metadata=context.invocation_metadata(), deadline=deadline),
                )
        except ServePruneError as error:
            self._server.dataplane.count_rejection(error.code)
            raise
        answer = service.submit(request)
        response = await PendingAnswer(
            answer, receive=_never, timeout_seconds=self._config.request_timeout_seconds
        ).result()
        serialized, metadata = service.encode(response)
        if metadata:
            context.set_trailing_metadata([*context.trailing_metadata(), *metadata])
        return _Serialized(serialized)

    async def ServerLive(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.server_live`."""
        return await self._described("ServerLive", self._grpc.server_live, pb.ServerLiveRequest, request, grpc_context)

    async def ServerReady(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.server_ready`."""
        return await self._described(
            "ServerReady", self._grpc.server_ready, pb.ServerReadyRequest, request, grpc_context
        )

    async def ModelReady(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.model_ready`."""
        return await self._described("ModelReady", self._grpc.model_ready, pb.ModelReadyRequest, request, grpc_context)

    async def ServerMetadata(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.server_metadata`."""
        return await self._described(
            "ServerMetadata", self._grpc.server_metadata, pb.ServerMetadataRequest, request, grpc_context
        )

    async def ModelMetadata(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.model_metadata`."""
        return await self._described(
            "ModelMetadata", self._grpc.model_metadata, pb.ModelMetadataRequest, request, grpc_context
        )

    async def RepositoryIndex(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.repository_index`."""
        return await self._described(
            "RepositoryIndex", self._grpc.repository_index, pb.RepositoryIndexRequest, request, grpc_context
        )

    async def RepositoryModelLoad(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.repository_load`."""
        return await self._described(
            "RepositoryModelLoad", self._grpc.repository_load, pb.RepositoryModelLoadRequest, request, grpc_context
        )

    async def RepositoryModelUnload(self, request: bytes, grpc_context: RayServegRPCContext) -> _Serialized:  # noqa: N802
        """See `InferenceService.repository_unload`."""
        return await self._described(
            "RepositoryModelUnload",
            self._grpc.repository_unload,
            pb.RepositoryModelUnloadRequest,
            request,
            grpc_context,
        )

    async def _described(
        self,
        name: str,
        answer: Callable[..., Message],
        message: type[Message],
        request: bytes,
        context: RayServegRPCContext,
    ) -> _Serialized:
        """Answer a call that waits for nothing."""
        try:
            self._authorize(name, context)
            return _Serialized(answer(parse_message(request, message), context).SerializeToString())
        except ServePruneError as error:
            return _failed(error, context)
        except Exception:  # see above
            _log.exception("unexpected failure in a call of %s", name)
            return _failed(_unexpected(), context)

    def _authorize(self, name: str, context: RayServegRPCContext) -> None:
        authorization = self._server.authorization
        if authorization is None or name in _FOR_EVERYBODY:
            return
        refusal = authorization.refusal(shown_in_metadata(context.invocation_metadata()))
        if refusal is not None:
            raise refusal

    def __del__(self) -> None:
        self._server.stop()
        self._computing.stop()


def _has_looked(models: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether all tiers that need no build have been brought up, or tried: builds come last."""
    tiers = [tier for model in models for tier in model["tiers"]]
    # One that waits and says why has been tried.
    untried = any(tier["state"] == VariantState.WAITING and not tier["reasons"] for tier in tiers)
    return not untried or any(tier["state"] == VariantState.BUILDING for tier in tiers)


async def _never() -> dict[str, Any]:
    """Wait for ever: of a caller that leaves nobody tells but Ray, which ends the call's task."""
    await asyncio.Event().wait()
    raise AssertionError("nothing sets it")


async def _live(receive: Receive, send: Send) -> None:
    """Answer ASGI's lifespan protocol."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _failed(error: ServePruneError, context: RayServegRPCContext) -> _Serialized:
    """End a call with an error; what is returned is not sent."""
    context.set_code(grpc.StatusCode[error.code.name])
    context.set_details(details_of(error))
    context.set_trailing_metadata([*context.trailing_metadata(), *trailing_metadata_of(error)])
    return _Serialized()


def _unexpected() -> Internal:
    return Internal("internal error; see the server's log")
