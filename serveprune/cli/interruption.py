import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType


@contextmanager
def interruption() -> Iterator[Event]:
    """Give an event that Ctrl-C and SIGTERM set, so that the child ends cleanly before this process does."""
    interrupted = Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
