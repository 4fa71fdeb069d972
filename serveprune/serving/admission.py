import threading
from collections.abc import Mapping

from serveprune.errors import ResourceExhausted

_RETRY_SECONDS = 1.0


class Admission:
    """Bounds how many requests are waiting or running, of each model and together, and their bytes. Thread-safe."""

    def __init__(self, *, limit: int, max_bytes: int) -> None:
        """Set the bounds.

        Args:
            limit: Requests of all models together.
            max_bytes: Of all inputs together. A request that is alone is admitted whatever its size: what it may
                have is bounded where it is received.
        """
        self._limit = limit
        self._limits: Mapping[str, int] = {}
        self._max_bytes = max_bytes
        self._admitted = 0
        self._admitted_of: dict[str, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def limit_models(self, limits: Mapping[str, int]) -> None:
        """Bound single models, too, in other ways than before; who is admitted stays.

        Args:
            limits: Model -> requests of it; a model that is not named is bounded together with the others only.
        """
        self._limits = dict(limits)

    def enter(self, model: str, size_bytes: int) -> None:
        """Take a place.

        Raises:
            ResourceExhausted: All places are taken, the model's own are, or the bytes are.
        """
        with self._lock:
            self._check(model, size_bytes)
            self._admitted += 1
            self._admitted_of[model] = self._admitted_of.get(model, 0) + 1
            self._bytes += size_bytes

    def leave(self, model: str, size_bytes: int) -> None:
        """Give the place back."""
        with self._lock:
            self._admitted -= 1
            self._admitted_of[model] -= 1
            self._bytes -= size_bytes

    def _check(self, model: str, size_bytes: int) -> None:
        if self._admitted >= self._limit:
            raise _full(f"the server already holds {self._limit} requests (server.max_queued_requests)")
        limit = self._limits.get(model)
        if limit is not None and self._admitted_of.get(model, 0) >= limit:
            raise _full(f"{limit} requests to {model} are held already (deployments.{model}.max_queued_requests)")
        if self._admitted and self._bytes + size_bytes > self._max_bytes:
            raise _full(
                f"the requests that the server holds have {self._bytes} bytes of inputs, and this one {size_bytes} "
                f"(server.max_queued_bytes: {self._max_bytes})"
            )


def _full(why: str) -> ResourceExhausted:
    return ResourceExhausted(f"{why}; retry later", retry_after_seconds=_RETRY_SECONDS)
