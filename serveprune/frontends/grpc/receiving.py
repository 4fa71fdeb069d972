import threading
import time
from collections.abc import Callable, Iterator

from serveprune.frontends.grpc.runtime import ServicerContext

_HURRY_SECONDS = 1.0
"""What a message may take while its worker is needed; nearly all take less by far."""


class ReceivingCalls:
    """Cuts off clients that take too long to send their message. Thread-safe.

    A call occupies a worker from its first byte on; without a limit a few slow clients would occupy all. So they
    may take their time only while there are workers enough: as soon as calls wait for one, no more than half of
    the workers are left to those that still receive, the latest.

    Args:
        timeout_seconds: For a whole message.
        workers: That inference has.
        clock: Monotonic seconds.
    """

    def __init__(self, *, timeout_seconds: float, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_seconds = timeout_seconds
        self._most_under_pressure = workers // 2
        self._clock = clock
        self._since: dict[ServicerContext, float] = {}
        self._lock = threading.Lock()

    def receive(self, messages: Iterator[bytes], context: ServicerContext) -> bytes | None:
        """Return the message of a call; ``None`` when the client sent none.

        Raises:
            grpc.RpcError: The call ended before the message was there.
        """
        self.begin(context)
        try:
            return next(messages, None)
        finally:
            self.end(context)

    def begin(self, context: ServicerContext) -> None:
        """Note that a call waits for its message from now on."""
        with self._lock:
            self._since[context] = self._clock()

    def end(self, context: ServicerContext) -> None:
        """Note that it does not wait any more."""
        with self._lock:
            self._since.pop(context, None)

    def cut_off(self, *, waiting: int) -> None:
        """End the calls whose message is overdue; to be called now and then.

        Args:
            waiting: Calls that wait for a worker.
        """
        now = self._clock()
        with self._lock:
            since = dict(self._since)  # the oldest first
        excess = min(waiting, len(since) - self._most_under_pressure)
        for index, (context, begun) in enumerate(since.items()):
            allowed = _HURRY_SECONDS if index < excess else self._timeout_seconds
            if now - begun > min(allowed, self._timeout_seconds):
                context.cancel()
