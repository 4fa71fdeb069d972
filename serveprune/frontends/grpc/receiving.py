import threading
import time
from collections.abc import Callable, Iterator

from serveprune.frontends.grpc.runtime import ServicerContext


class ReceivingCalls:
    """Cuts off clients that take too long to send their message. Thread-safe.

    A call occupies a worker from its first byte on; without a limit a few slow clients would occupy all.
    """

    def __init__(self, *, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._since: dict[ServicerContext, float] = {}
        self._lock = threading.Lock()

    def receive(self, messages: Iterator[bytes], context: ServicerContext) -> bytes | None:
        """Return the message of a call; ``None`` when the client sent none.

        Raises:
            grpc.RpcError: The call ended before the message was there.
        """
        with self._lock:
            self._since[context] = self._clock()
        try:
            return next(messages, None)
        finally:
            with self._lock:
                del self._since[context]

    def cut_off(self) -> None:
        """End the calls whose message is overdue; to be called now and then."""
        oldest = self._clock() - self._timeout_seconds
        with self._lock:
            overdue = [context for context, since in self._since.items() if since < oldest]
        for context in overdue:
            context.cancel()
