"""The standard health service ``grpc.health.v1``, which orchestrators and client-side balancers ask."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

from serveprune.errors import NotFound
from serveprune.frontends.grpc.methods import UnaryMethods
from serveprune.frontends.grpc.runtime import Server, ServicerContext
from serveprune.frontends.grpc.streams import OpenStreams

Send = Callable[[health_pb2.HealthCheckResponse | None], None]
"""Sends one message of a stream; ``None`` ends it."""


@dataclass(slots=True)
class _Watcher:
    """One open Watch call and the status it was told last."""

    send: Send
    told: int


class HealthService:
    """Says SERVING while the data plane is ready, and NOT_SERVING before that and once a drain has begun.

    The servicer of grpcio-health-checking has to be told of every change, and its watchers hold up a drain.

    Args:
        ready: Tells whether requests can be served.
        services: Names that may be asked for; all share one status.
        streams: Takes the open Watch calls.
    """

    def __init__(self, ready: Callable[[], bool], *, services: frozenset[str], streams: OpenStreams) -> None:
        self._ready = ready
        self._services = services
        self._streams = streams
        self._draining = False
        self._watchers: dict[ServicerContext, _Watcher] = {}
        self._lock = threading.Lock()

    def check(self, request: health_pb2.HealthCheckRequest, context: ServicerContext) -> health_pb2.HealthCheckResponse:
        """Answer a probe.

        Raises:
            NotFound: No service of that name.
        """
        if request.service not in self._services:
            raise NotFound(f"unknown service {request.service!r}; known are: {self._known()}")
        return health_pb2.HealthCheckResponse(status=self._status())

    def watch(self, request: health_pb2.HealthCheckRequest, context: ServicerContext, send: Send) -> None:
        """Tell the status now and at every change; returns at once, ``send`` serves the rest of the stream."""
        self._streams.add(context)
        if request.service not in self._services:
            # As the service is specified: unknown names are no error, for they may become known.
            send(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN))
            return
        status = self._status()
        send(health_pb2.HealthCheckResponse(status=status))
        with self._lock:
            self._watchers[context] = _Watcher(send, status)
        if not context.add_callback(lambda: self._forget(context)):
            self._forget(context)

    def refresh(self) -> None:
        """Tell the watchers if the status has changed; to be called now and then, by one thread at a time."""
        status = self._status()
        with self._lock:
            outdated = [watcher for watcher in self._watchers.values() if watcher.told != status]
        for watcher in outdated:
            watcher.told = status
            watcher.send(health_pb2.HealthCheckResponse(status=status))

    def drain(self) -> None:
        """Say NOT_SERVING from now on, and end the watchers' streams after telling them."""
        self._draining = True
        self.refresh()
        with self._lock:
            watchers = list(self._watchers.values())
            self._watchers.clear()
        for watcher in watchers:
            watcher.send(None)

    def _status(self) -> int:
        serving = not self._draining and self._ready()
        response = health_pb2.HealthCheckResponse
        return int(response.SERVING if serving else response.NOT_SERVING)

    def _forget(self, context: ServicerContext) -> None:
        with self._lock:
            self._watchers.pop(context, None)

    def _known(self) -> str:
        return ", ".join(repr(name) for name in sorted(self._services))


def add_health(server: Server, service: HealthService, *, methods: UnaryMethods, pool: ThreadPoolExecutor) -> None:
    """Serve the health service; no call of it occupies a thread of ``pool`` for longer than it takes to answer."""

    def watch(request: health_pb2.HealthCheckRequest, context: ServicerContext, send: Send) -> None:
        service.watch(request, context, send)

    # The attributes by which the runtime offers streams without a thread each, and a choice of the pool.
    watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    watch.experimental_thread_pool = pool  # type: ignore[attr-defined]
    handlers = {
        "Check": methods.handler(service.check, request=health_pb2.HealthCheckRequest, pool=pool),
        "Watch": grpc.unary_stream_rpc_method_handler(
            watch,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        ),
    }
    server.add_registered_method_handlers(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, handlers)
