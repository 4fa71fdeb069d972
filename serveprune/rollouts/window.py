"""What happened lately, as counts. Pure: the moment is handed in."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from serveprune.rollouts.latency_counts import LatencyCounts

_SLOTS = 60
"""A window of ten minutes forgets ten seconds at a time."""


@dataclass(frozen=True, slots=True)
class Agreements:
    """Sums over comparisons of live answers with those of another tier.

    Attributes:
        count: Comparisons.
        total: Sum of the agreements; 1 is the same answer.
        squares: Sum of their squares.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Agreements") -> "Agreements":
        return Agreements(self.count + other.count, self.total + other.total, self.squares + other.squares)


@dataclass(frozen=True, slots=True)
class Counts:
    """What one side did: the canary, or the stable one. Those of several processes may be added.

    Attributes:
        errors: Requests that failed by the server's fault.
        latencies: Of the requests that were answered, from arrival to answer. Failed ones are left out: those that
            fail at once would make the rest look fast.
        agreements: Of answers that were compared.
    """

    errors: int
    latencies: LatencyCounts
    agreements: Agreements = Agreements()

    @property
    def requests(self) -> int:
        """Answered and failed ones."""
        return self.errors + self.latencies.total

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.errors + other.errors, self.latencies + other.latencies, self.agreements + other.agreements)


@dataclass(slots=True)
class _Slot:
    """A sixtieth of the window."""

    number: int
    latencies: list[int]
    errors: int = 0
    agreements: Agreements = field(default_factory=Agreements)


class Window:
    """Counts of the last so many seconds, in slots of time that are forgotten one by one. Not thread-safe."""

    def __init__(self, seconds: float, *, bounds: tuple[float, ...]) -> None:
        """Start empty.

        Args:
            seconds: How far back it goes; up to a sixtieth less, for the oldest slot goes as a whole.
            bounds: Seconds; see `latency_bounds`.
        """
        self._slot_seconds = seconds / _SLOTS
        self._bounds = bounds
        self._slots: deque[_Slot] = deque(maxlen=_SLOTS)

    def add(self, *, now: float, latencies_seconds: Sequence[float] = (), errors: int = 0) -> None:
        """Count the requests of a batch that is done.

        Args:
            now: Seconds on any clock; what comes a little late counts as of the newest slot.
            latencies_seconds: Of each request that was answered, from its arrival.
            errors: Requests that failed.
        """
        slot = self._slot(now)
        slot.errors += errors
        for seconds in latencies_seconds:
            slot.latencies[bisect_left(self._bounds, seconds)] += 1

    def add_counts(self, counts: Counts, *, now: float) -> None:
        """Count what was counted elsewhere, with the same bounds."""
        slot = self._slot(now)
        slot.errors += counts.errors
        slot.latencies = [own + more for own, more in zip(slot.latencies, counts.latencies.counts, strict=True)]
        slot.agreements += counts.agreements

    def add_agreements(self, values: Iterable[float], *, now: float) -> None:
        """Count comparisons; a value that is not finite counts as 0, for what cannot be compared does not agree."""
        known = [value if math.isfinite(value) else 0.0 for value in values]
        slot = self._slot(now)
        slot.agreements += Agreements(len(known), math.fsum(known), math.fsum(value * value for value in known))

    def counts(self, *, now: float) -> Counts:
        """Return what is in the window at this moment."""
        oldest = self._number(now) - _SLOTS
        slots = [slot for slot in self._slots if slot.number > oldest]
        columns = zip(*(slot.latencies for slot in slots), strict=True)
        latencies = tuple(map(sum, columns)) if slots else (0,) * (len(self._bounds) + 1)
        return Counts(
            sum(slot.errors for slot in slots),
            LatencyCounts(self._bounds, latencies),
            sum((slot.agreements for slot in slots), Agreements()),
        )

    def _slot(self, now: float) -> _Slot:
        number = self._number(now)
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(_Slot(number, [0] * (len(self._bounds) + 1)))
        return self._slots[-1]

    def _number(self, now: float) -> int:
        return math.floor(now / self._slot_seconds)
