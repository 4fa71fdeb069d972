import asyncio
import math
from collections.abc import Callable

_SLACK_SECONDS = 0.001
"""Timers of the event loop ring a little early."""


class Deadline:
    """The one moment at which a connection does something by itself.

    A connection moves it several times per request, nearly always to a later moment. A timer of the event loop for
    each move would cost more than the rest of the connection's work, so the timer rings early and looks again.
    """

    __slots__ = ("_action", "_due", "_handle", "_loop", "_rings")

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        self._loop = loop
        self._action: Callable[[], None] | None = action
        self._due = math.inf
        self._rings = math.inf
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Move it to so many seconds from now."""
        due = self._due = self._loop.time() + seconds
        if due < self._rings and self._action is not None:
            if self._handle is not None:
                self._handle.cancel()
            self._start_timer(due)

    def clear(self) -> None:
        """Have nothing happen until it is set again."""
        self._due = math.inf

    def close(self) -> None:
        """Have nothing happen any more."""
        self._action = None
        self._due = self._rings = math.inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    @property
    def is_set(self) -> bool:
        """Whether something is to happen."""
        return self._due < math.inf

    def _start_timer(self, due: float) -> None:
        self._rings = due
        self._handle = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._handle, self._rings = None, math.inf
        if self._loop.time() >= self._due - _SLACK_SECONDS:
            self.clear()
            if self._action is not None:
                self._action()
        elif self.is_set:
            self._start_timer(self._due)
