import asyncio
from collections.abc import Callable


class Arrivals:
    """Starts what has arrived in one round of an event loop together, so that it may share a run. For one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, proceed: Callable[[], None]) -> None:
        """Begin to collect.

        Args:
            loop: Reads from all connections that have something before it calls what is to be called soon.
            proceed: Called when all that came together has been started.
        """
        self._loop = loop
        self._proceed = proceed
        self._arrived: list[Callable[[], None]] = []

    def add(self, start: Callable[[], None]) -> None:
        """Have something started, which must not raise, when everything has been read."""
        if not self._arrived:
            self._loop.call_soon(self._start)
        self._arrived.append(start)

    def _start(self) -> None:
        arrived, self._arrived = self._arrived, []
        for start in arrived:
            start()
        self._proceed()
