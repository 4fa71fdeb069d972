from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serveprune.errors import ResourceExhausted

_RETRY_SECONDS = 1.0

Take = Callable[[int], None]
"""Takes so many bytes more, or raises `ResourceExhausted`."""


class BodyBudget:
    """Bounds the bytes of all bodies that are held before the data plane admits their requests.

    For one event loop, so without a lock.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken_bytes = 0

    def take(self, more_bytes: int) -> None:
        """Take so many bytes more.

        Raises:
            ResourceExhausted: There are not so many left.
        """
        if self._taken_bytes + more_bytes > self._max_bytes:
            raise ResourceExhausted(
                f"the server already holds {self._taken_bytes} bytes of bodies that are not complete "
                f"(server.max_buffered_bytes: {self._max_bytes}); retry later",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._taken_bytes += more_bytes

    def give_back(self, fewer_bytes: int) -> None:
        """Give back what was taken."""
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
