import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

from serveprune.oip.messages import InferenceResponse

_log = logging.getLogger(__name__)

_PENDING, _CANCELLED, _OVER = range(3)


class Answer:
    """The answer to one inference, which may be still to come. Thread-safe.

    As much of `concurrent.futures.Future` as is needed here, at a fifth of its price: a server makes one per request,
    and nobody waits for it in a thread but tests and callers without an event loop.
    """

    __slots__ = ("_callbacks", "_error", "_lock", "_response", "_state")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = _PENDING
        self._response: InferenceResponse | None = None
        self._error: Exception | None = None
        self._callbacks: list[Callable[[Answer], None]] | None = None

    def done(self) -> bool:
        """Tell whether it is there, has failed, or was given up."""
        return self._state != _PENDING

    def cancelled(self) -> bool:
        """Tell whether it was given up."""
        return self._state == _CANCELLED

    def cancel(self) -> bool:
        """Give it up, unless it is there already or has failed; return whether it is given up."""
        return self._end(_CANCELLED) or self.cancelled()

    def set_result(self, response: InferenceResponse) -> bool:
        """Give the answer; return whether it was still wanted."""
        return self._end(_OVER, response=response)

    def set_exception(self, error: Exception) -> bool:
        """Tell why there is none; return whether it was still wanted."""
        return self._end(_OVER, error=error)

    def add_done_callback(self, callback: Callable[["Answer"], None]) -> None:
        """Have something called when it is over, in the thread that ends it; at once if it is."""
        with self._lock:
            if self._state == _PENDING:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        self._tell(callback)

    def result(self, timeout: float | None = None) -> InferenceResponse:
        """Wait for the answer.

        Raises:
            CancelledError: It was given up.
            TimeoutError: It did not come within so many seconds.
            ServePruneError: Why there is none.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        assert self._response is not None
        return self._response

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait for the answer, and return why there is none; ``None`` if there is one.

        Raises:
            CancelledError: It was given up.
            TimeoutError: It did not come within so many seconds.
        """
        if self._state == _PENDING:
            over = threading.Event()
            self.add_done_callback(lambda _: over.set())
            if not over.wait(timeout):
                raise TimeoutError(f"no answer within {timeout} s")
        if self._state == _CANCELLED:
            raise CancelledError
        return self._error

    def _end(self, state: int, *, response: InferenceResponse | None = None, error: Exception | None = None) -> bool:
        with self._lock:
            if self._state != _PENDING:
                return False
            # The state last: it is read without the lock.
            self._response, self._error, self._state = response, error, state
            callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            for callback in callbacks:
                self._tell(callback)
        return True

    def _tell(self, callback: Callable[["Answer"], None]) -> None:
        try:
            callback(self)
        except Exception:  # whoever ends it must not be ended by whoever is told
            _log.exception("what an answer was told to failed")
