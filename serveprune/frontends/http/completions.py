import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Completions:
    """Carries what threads have finished to an event loop, whose thread made this: all that is there in one wake-up.

    Waking the loop costs a system call and a change of threads, more than most answers of small models cost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._finished: deque[Callable[[], None]] = deque()
        self._woken = False

    def add(self, finish: Callable[[], None]) -> None:
        """Have something called on the event loop; from any thread."""
        self._finished.append(finish)
        # Appended first: whoever takes the flag down looks at the queue afterwards.
        if not self._woken:
            self._woken = True
            here = threading.get_ident() == self._thread
            try:
                (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(self._drain)
            except RuntimeError:
                # The loop is closed, and with it every connection.
                self._finished.clear()

    def _drain(self) -> None:
        self._woken = False
        while self._finished:
            try:
                self._finished.popleft()()
            except Exception:  # the others must be told nevertheless
                _log.exception("an answer could not be written")
