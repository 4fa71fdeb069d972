import threading

from serveprune.errors import ResourceExhausted

_RETRY_SECONDS = 1.0


class Admission:
    """Bounds how many requests are waiting or running, all models together. Thread-safe."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._admitted = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Take a place.

        Raises:
            ResourceExhausted: All places are taken.
        """
        with self._lock:
            if self._admitted >= self._limit:
                raise ResourceExhausted(
                    f"the server already holds {self._limit} requests (server.max_queued_requests); retry later",
                    retry_after_seconds=_RETRY_SECONDS,
                )
            self._admitted += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._admitted -= 1
