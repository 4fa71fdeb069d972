"""``inference.GRPCInferenceService``: decode, call the planes, encode."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from google.protobuf.message import Message

from serveprune.errors import Cancelled, Code, DeadlineExceeded, Internal, InvalidArgument, ServePruneError
from serveprune.frontends.authorization import Authorization
from serveprune.frontends.grpc.decoding import TIER_METADATA, Metadata, decode_request
from serveprune.frontends.grpc.encoding import (
    encode_index,
    encode_model_metadata,
    encode_response,
    encode_server_metadata,
)
from serveprune.frontends.grpc.methods import Method, UnaryMethods, parse_message
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.grpc.runtime import RpcMethodHandler, ServicerContext
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.frontends.planes import ControlPlane, DataPlane
from serveprune.observability.request_observer import RequestObserver
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceRequest, InferenceResponse
from serveprune.oip.repository_requests import expect_no_overrides

_LOOK_SECONDS = 0.2
"""How often whoever waits for a change of the repository looks whether its caller is still there."""

SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_FOR_EVERYBODY = ("ServerLive", "ServerReady")
"""Methods that need no token: probes have none, and they tell nothing of the models."""


class InferenceService:
    """Answers the methods of the Open Inference Protocol.

    Args:
        dataplane: Answers inference and metadata requests.
        controlplane: Answers the repository index.
        request_timeout_seconds: Waits no longer than this for an answer.
        on_rejected: Told the code of each inference request that fails to reach the data plane.
        authorization: Judges who may call; without one everybody may. Calls of ``ModelInfer`` are judged before they
            come here.
        observer: Records the calls of ``ModelInfer`` that have a thread each; `DirectCalls` does it for all others.
    """

    infer_method = f"/{SERVICE}/ModelInfer"
    request_name: str = pb.ModelInferRequest.DESCRIPTOR.full_name

    def __init__(
        self,
        dataplane: DataPlane,
        controlplane: ControlPlane,
        *,
        request_timeout_seconds: float,
        on_rejected: Callable[[Code], None],
        authorization: Authorization | None = None,
        observer: RequestObserver | None = None,
    ) -> None:
        self._authorization = authorization
        self._observer = observer
        self._dataplane = dataplane
        self._controlplane = controlplane
        self._timeout_seconds = request_timeout_seconds
        self._on_rejected = on_rejected
        self.submit, self.proceed = dataplane.submit, dataplane.proceed

    def inference_handler(self, methods: UnaryMethods, *, pool: ThreadPoolExecutor) -> RpcMethodHandler:
        """Return the handler of ``ModelInfer``, each call of which occupies a thread until it is answered."""
        return methods.handler(self.model_infer, request=pb.ModelInferRequest, pool=pool, on_rejected=self._on_rejected)

    def quick_handlers(self, methods: UnaryMethods, *, pool: ThreadPoolExecutor) -> Mapping[str, RpcMethodHandler]:
        """Return the handlers of all other methods, none of which waits for anything."""
        answers: dict[str, tuple[Method, type[Message]]] = {
            "ServerLive": (self.server_live, pb.ServerLiveRequest),
            "ServerReady": (self.server_ready, pb.ServerReadyRequest),
            "ModelReady": (self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataRequest),
            "RepositoryIndex": (self.repository_index, pb.RepositoryIndexRequest),
        }
        return self._handlers(answers, methods, pool=pool)

    def slow_handlers(self, methods: UnaryMethods, *, pool: ThreadPoolExecutor) -> Mapping[str, RpcMethodHandler]:
        """Return the handlers of the methods that wait for a model to be loaded or unloaded, a thread each."""
        answers: dict[str, tuple[Method, type[Message]]] = {
            "RepositoryModelLoad": (self.repository_load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self.repository_unload, pb.RepositoryModelUnloadRequest),
        }
        return self._handlers(answers, methods, pool=pool)

    def _handlers(
        self, answers: Mapping[str, tuple[Method, type[Message]]], methods: UnaryMethods, *, pool: ThreadPoolExecutor
    ) -> Mapping[str, RpcMethodHandler]:
        return {
            name: methods.handler(
                answer,
                request=request,
                pool=pool,
                authorization=None if name in _FOR_EVERYBODY else self._authorization,
            )
            for name, (answer, request) in answers.items()
        }

    def server_live(self, request: pb.ServerLiveRequest, context: ServicerContext) -> pb.ServerLiveResponse:
        """Answer ``ServerLive``."""
        return pb.ServerLiveResponse(live=self._dataplane.live())

    def server_ready(self, request: pb.ServerReadyRequest, context: ServicerContext) -> pb.ServerReadyResponse:
        """Answer ``ServerReady``."""
        return pb.ServerReadyResponse(ready=self._dataplane.ready())

    def model_ready(self, request: pb.ModelReadyRequest, context: ServicerContext) -> pb.ModelReadyResponse:
        """Answer ``ModelReady``."""
        return pb.ModelReadyResponse(ready=self._dataplane.model_ready(request.name, version=request.version or None))

    def server_metadata(self, request: pb.ServerMetadataRequest, context: ServicerContext) -> pb.ServerMetadataResponse:
        """Answer ``ServerMetadata``."""
        return encode_server_metadata(self._dataplane.server_metadata())

    def model_metadata(self, request: pb.ModelMetadataRequest, context: ServicerContext) -> pb.ModelMetadataResponse:
        """Answer ``ModelMetadata``."""
        return encode_model_metadata(self._dataplane.model_metadata(request.name, version=request.version or None))

    def repository_index(
        self, request: pb.RepositoryIndexRequest, context: ServicerContext
    ) -> pb.RepositoryIndexResponse:
        """Answer ``RepositoryIndex``."""
        _expect_the_repository(request.repository_name)
        return encode_index(self._controlplane.index(ready_only=request.ready))

    def repository_load(
        self, request: pb.RepositoryModelLoadRequest, context: ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        """Answer ``RepositoryModelLoad``."""
        _expect_the_repository(request.repository_name)
        expect_no_overrides(request.parameters, loads=True)
        _await_change(self._controlplane.load(request.model_name), context)
        return pb.RepositoryModelLoadResponse()

    def repository_unload(
        self, request: pb.RepositoryModelUnloadRequest, context: ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        """Answer ``RepositoryModelUnload``."""
        _expect_the_repository(request.repository_name)
        expect_no_overrides(request.parameters, loads=False)
        _await_change(self._controlplane.unload(request.model_name), context)
        return pb.RepositoryModelUnloadResponse()

    def model_infer(self, request: pb.ModelInferRequest, context: ServicerContext) -> pb.ModelInferResponse:
        """Answer ``ModelInfer``; the serving tier is in the trailing metadata too."""
        if self._observer is None:
            return self._infer(request, context)
        record = self._observer.begin("grpc", self.infer_method[1:], context.invocation_metadata())
        observed = ObservedRequest(self._observer, record)
        try:
            return self._infer(request, context, observed=observed)
        except Exception as error:
            # What else than our own errors it is, its caller is not told either.
            observed.failed(error if isinstance(error, ServePruneError) else Internal("internal error"))
            _add_trailing(context, observed.answered(size_bytes=0))
            raise

    def _infer(
        self, request: pb.ModelInferRequest, context: ServicerContext, *, observed: ObservedRequest | None = None
    ) -> pb.ModelInferResponse:
        deadline = _monotonic(context.time_remaining())
        try:
            decoded = decode_request(request, metadata=context.invocation_metadata(), deadline=deadline)
        except ServePruneError as error:
            self._on_rejected(error.code)
            raise
        if observed is None:
            answer = self.submit(decoded)
        else:
            observed.asked(decoded, size_bytes=request.ByteSize())
            answer = self.submit(decoded, record=observed.record)
        response = self._await(answer, context, deadline=deadline)
        serialized, metadata = self.encode(response)
        if observed is not None:
            metadata = (*metadata, *observed.answered(size_bytes=len(serialized)))
        _add_trailing(context, metadata)
        return pb.ModelInferResponse.FromString(serialized)

    def decode(self, serialized: bytes, *, metadata: Metadata, deadline: float) -> InferenceRequest:
        """Return the request that a serialized message and its call hold.

        Args:
            serialized: The message.
            metadata: Of the call; names are lower-case.
            deadline: Of the call, on ``time.time()``; far away if it has none.

        Raises:
            ServePruneError: They hold none.
        """
        message: Any = parse_message(serialized, pb.ModelInferRequest)
        return decode_request(message, metadata=metadata, deadline=_monotonic(max(0.0, deadline - time.time())))

    def encode(self, response: InferenceResponse) -> tuple[bytes, tuple[tuple[str, str], ...]]:
        """Return a serialized answer and its trailing metadata."""
        return encode_response(response), _tier_metadata(response)

    def _await(self, answer: Answer, context: ServicerContext, *, deadline: float | None) -> InferenceResponse:
        """Wait for an answer no longer than the caller does, and give it up when the caller leaves."""
        over = threading.Event()

        def leave() -> None:
            answer.cancel()
            over.set()

        answer.add_done_callback(lambda _: over.set())
        if not context.add_callback(leave):
            leave()
        remaining = self._timeout_seconds if deadline is None else deadline - time.monotonic()
        if not over.wait(min(remaining, self._timeout_seconds)):
            answer.cancel()
            raise DeadlineExceeded("the request was not answered in time")
        if not answer.done():
            raise Cancelled("the caller left before the request was answered")
        try:
            return answer.result()
        except CancelledError:
            raise Cancelled("the caller left before the request was answered") from None


def _expect_the_repository(name: str) -> None:
    if name:
        raise InvalidArgument(f"expected no repository_name, for there is one, got {name!r}")


def _await_change(change: "Future[None]", context: ServicerContext) -> None:
    """Wait for a change of the repository, which goes on when the caller leaves: others may have asked for it too."""
    while True:
        try:
            return change.result(_LOOK_SECONDS)
        except TimeoutError:
            if not context.is_active():
                raise Cancelled("the caller left before the change was made; it goes on") from None


def _add_trailing(context: ServicerContext, metadata: Sequence[tuple[str, str]]) -> None:
    if metadata:
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), *metadata))


def _tier_metadata(response: InferenceResponse) -> tuple[tuple[str, str], ...]:
    # All that a header may hold.
    if response.tier.isascii() and response.tier.isprintable():
        return ((TIER_METADATA, response.tier),)
    return ()


def _monotonic(remaining: float | None) -> float | None:
    """Return on ``time.monotonic()`` the deadline of a call that has so many seconds left."""
    # A call without a deadline has one at the end of time.
    if remaining is None or not math.isfinite(remaining) or remaining > threading.TIMEOUT_MAX:
        return None
    return time.monotonic() + remaining
