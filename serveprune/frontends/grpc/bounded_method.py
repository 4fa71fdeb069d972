import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from serveprune.errors import Code, ResourceExhausted, ServePruneError
from serveprune.frontends.authorization import Authorization, shown_in_metadata
from serveprune.frontends.grpc.runtime import HandlerCallDetails, RpcMethodHandler, ServicerContext
from serveprune.frontends.grpc.status import abort
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.observability.request_observer import RequestObserver

_RETRY_SECONDS = 1.0


class BoundedMethod:
    """Refuses calls of one method at arrival: without a token, or while too many wait for a worker. Thread-safe.

    They would wait in the runtime's pool, without bound and unseen by the data plane's admission.

    Args:
        name: Full name, ``/package.Service/Method``.
        handler: Of a method that reads its requests as a stream.
        limit: Calls that may wait.
        pool: Runs the refusals.
        on_rejected: Told of each refusal.
        authorization: Judges who may call; without one everybody may.
        observer: Records refusals.
    """

    def __init__(
        self,
        name: str,
        handler: RpcMethodHandler,
        *,
        limit: int,
        pool: ThreadPoolExecutor,
        on_rejected: Callable[[Code], None],
        authorization: Authorization | None = None,
        observer: RequestObserver | None = None,
    ) -> None:
        self._observer = observer
        self._name = name
        self._limit = limit
        self._on_rejected = on_rejected
        self._authorization = authorization
        self._pool = pool
        self._behaviour = handler.stream_unary
        self._waiting = 0
        self._lock = threading.Lock()
        self._admitting = _handler(self._begin, pool=self._behaviour.experimental_thread_pool)
        self._refusing = self._refusal_of(
            ResourceExhausted(
                f"{limit} gRPC calls already wait (server.max_queued_requests); retry later",
                retry_after_seconds=_RETRY_SECONDS,
            )
        )

    @property
    def waiting(self) -> int:
        """Calls that wait for a worker."""
        return self._waiting

    def service(self, call: HandlerCallDetails) -> RpcMethodHandler | None:
        """Return the handler for a call that has just arrived; ``None`` for other methods' calls."""
        if call.method != self._name:
            return None
        if self._authorization is not None:
            refusal = self._authorization.refusal(shown_in_metadata(call.invocation_metadata))
            if refusal is not None:
                return self._refusal_of(refusal)
        with self._lock:
            if self._waiting >= self._limit:
                return self._refusing
            self._waiting += 1
        return self._admitting

    def _begin(self, messages: Iterator[bytes], context: ServicerContext) -> bytes:
        with self._lock:
            self._waiting -= 1
        response: bytes = self._behaviour(messages, context)
        return response

    def _refusal_of(self, error: ServePruneError) -> RpcMethodHandler:
        """Return a handler that ends its calls with an error."""

        def refuse(messages: Iterator[bytes], context: ServicerContext) -> bytes:
            self._on_rejected(error.code)
            if self._observer is not None:
                begun = self._observer.begin("grpc", self._name[1:], context.invocation_metadata())
                observed = ObservedRequest(self._observer, begun)
                observed.failed(error)
                context.set_trailing_metadata(observed.answered(size_bytes=0))
            abort(context, error)

        return _handler(refuse, pool=self._pool)


def _handler(
    behaviour: Callable[[Iterator[bytes], ServicerContext], bytes], *, pool: ThreadPoolExecutor
) -> RpcMethodHandler:
    def pooled(messages: Iterator[bytes], context: ServicerContext) -> bytes:
        return behaviour(messages, context)

    pooled.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.stream_unary_rpc_method_handler(pooled)
