class LineBudget:
    """How many lines may still be written: so many a second, and at once as many as in ten seconds. Not thread-safe.

    Attributes:
        left_out: Lines that were refused, until somebody takes note of them.
    """

    _BURST_SECONDS = 10.0

    def __init__(self, lines_per_second: float, *, now: float) -> None:
        self._rate = lines_per_second
        self._most = lines_per_second * self._BURST_SECONDS
        self._left = self._most
        self._at = now
        self.left_out = 0

    def take(self, now: float) -> bool:
        """Take the place of a line, if there is one."""
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            self.left_out += 1
            return False
        self._left -= 1.0
        return True
