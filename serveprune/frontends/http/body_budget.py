import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serveprune.errors import ResourceExhausted

_RETRY_SECONDS = 1.0

Take = Callable[[int], None]
"""Takes so many bytes more, or raises `ResourceExhausted`."""


class BodyBudget:
    """Bounds the bytes of all bodies, or of what they are parsed into, until the data plane admits their requests.

    Thread-safe.

    Attributes:
        max_bytes: That may be taken at once.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._taken_bytes = 0
        self._lock = threading.Lock()

    def take(self, more_bytes: int) -> None:
        """Take so many bytes more.

        Raises:
            ResourceExhausted: There are not so many left.
        """
        with self._lock:
            taken_bytes = self._taken_bytes
            if taken_bytes + more_bytes <= self.max_bytes:
                self._taken_bytes += more_bytes
                return
        raise ResourceExhausted(
            f"the server already holds {taken_bytes} bytes of bodies that are not complete, or are being parsed "
            f"(server.max_buffered_bytes: {self.max_bytes}); retry later",
            retry_after_seconds=_RETRY_SECONDS,
        )

    def give_back(self, fewer_bytes: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._taken_bytes -= fewer_bytes

    @contextmanager
    def share(self) -> Iterator[Take]:
        """Give one body its share, which grows with what has come and is given back at the end."""
        own_bytes = 0

        def take(more_bytes: int) -> None:
            nonlocal own_bytes
            self.take(more_bytes)
            own_bytes += more_bytes

        try:
            yield take
        finally:
            self.give_back(own_bytes)
