import threading

from serveprune.frontends.grpc.runtime import ServicerContext


class OpenStreams:
    """The calls that last until one side ends them, so that a drain need not wait for them. Thread-safe."""

    def __init__(self) -> None:
        self._contexts: set[ServicerContext] = set()
        self._lock = threading.Lock()

    def add(self, context: ServicerContext) -> None:
        """Remember a stream until it ends."""
        with self._lock:
            self._contexts.add(context)
        if not context.add_callback(lambda: self._remove(context)):
            self._remove(context)

    def cancel_all(self) -> None:
        """End every stream that is still open."""
        with self._lock:
            contexts = list(self._contexts)
        for context in contexts:
            context.cancel()

    def _remove(self, context: ServicerContext) -> None:
        with self._lock:
            self._contexts.discard(context)
