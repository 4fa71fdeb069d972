"""A server in simulated time: executors that take batches, requests that arrive, tiers that are chosen.

It knows nothing of the policy. Forecasts are made from what a server can know (its queue, the mean service times)
and are then made wrong on purpose.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from serveprune.scheduling.forecast import Forecast

Choose = Callable[[float, Callable[["SimulatedTier"], Forecast]], "SimulatedTier | None"]
"""From the time and the forecasts to a tier, or ``None`` to reject."""


@dataclass(frozen=True, slots=True)
class SimulatedTier:
    """A tier whose batch of `n` rows takes ``alone_seconds * (overhead + (1 - overhead) * n)`` on average."""

    name: str
    rank: int
    quality: float
    alone_seconds: float
    overhead: float = 0.2

    def mean_seconds(self, rows: int) -> float:
        return self.alone_seconds * (self.overhead + (1 - self.overhead) * rows)


@dataclass(slots=True)
class Outcome:
    """What became of all requests of one trace."""

    latencies: list[float] = field(default_factory=list)
    qualities: list[float] = field(default_factory=list)
    rejected: int = 0

    def kept(self, target_seconds: float) -> float:
        """Fraction of the admitted requests answered within the target."""
        return sum(latency <= target_seconds for latency in self.latencies) / len(self.latencies)

    @property
    def rejected_fraction(self) -> float:
        return self.rejected / (self.rejected + len(self.latencies))

    @property
    def mean_quality(self) -> float:
        """Of the admitted requests."""
        return sum(self.qualities) / len(self.qualities)


class SimulatedServer:
    """Executors that take, in order of arrival, what waits for the tier of the first request, as one batch."""

    def __init__(
        self,
        *,
        executors: int = 2,
        max_batch: int = 4,
        sigma: float = 0.15,
        forecast_error: Callable[[random.Random], float] = lambda _: 1.0,
        seed: int = 0,
    ) -> None:
        self._executors, self._max_batch, self._sigma = executors, max_batch, sigma
        self._forecast_error = forecast_error
        self._random = random.Random(seed)
        self._queue: deque[tuple[float, SimulatedTier]] = deque()
        self._queued_seconds = 0.0
        self._free = executors
        # Finish, a number to break ties, what the executor was expected to be done by, and the arrivals it answers.
        self._running: list[tuple[float, int, float, list[float]]] = []
        self._numbers = itertools.count()
        self.outcome = Outcome()

    def run(self, arrivals: Sequence[float], choose: Choose) -> Outcome:
        """Let requests arrive at these moments, and answer all that are admitted."""
        for now in arrivals:
            self._advance(now)
            tier = choose(now, lambda tier, now=now: self._forecast(tier, now))  # type: ignore[misc]
            if tier is None:
                self.outcome.rejected += 1
                continue
            self.outcome.qualities.append(tier.quality)
            self._queue.append((now, tier))
            self._queued_seconds += tier.alone_seconds * (1 - tier.overhead)
            self._dispatch(now)
        self._advance(math.inf)
        return self.outcome

    def _advance(self, now: float) -> None:
        while self._running and self._running[0][0] <= now:
            finish, _, _, answered = heapq.heappop(self._running)
            self.outcome.latencies += [finish - arrival for arrival in answered]
            self._free += 1
            self._dispatch(finish)

    def _dispatch(self, now: float) -> None:
        while self._free and self._queue:
            tier = self._queue[0][1]
            batch: list[float] = []
            while self._queue and self._queue[0][1] is tier and len(batch) < self._max_batch:
                batch.append(self._queue.popleft()[0])
            self._queued_seconds -= len(batch) * tier.alone_seconds * (1 - tier.overhead)
            mean = tier.mean_seconds(len(batch))
            took = mean * math.exp(self._random.gauss(0.0, self._sigma))
            heapq.heappush(self._running, (now + took, next(self._numbers), now + mean, batch))
            self._free -= 1

    def _forecast(self, tier: SimulatedTier, now: float) -> Forecast:
        wrong = self._forecast_error(self._random)
        alone = tier.mean_seconds(1)
        if self._free:
            return Forecast(0.0, alone * wrong, alone * wrong)
        running = [max(expected - now, 0.0) for _, _, expected, _ in self._running]
        work = sum(running) + self._queued_seconds
        wait = max(min(running), (work - alone) / self._executors) if self._queue else min(running)
        # It may meet those of its tier at the end of the queue.
        rows = 1
        for _, queued in itertools.islice(reversed(self._queue), self._max_batch - 1):
            if queued is not tier:
                break
            rows += 1
        return Forecast(wait * wrong, tier.mean_seconds(rows) * wrong, alone * wrong)


def poisson(rate: Callable[[float], float], *, peak: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield the moments of a Poisson process of varying rate (requests per second, at most ``peak``), by thinning."""
    source = random.Random(seed)
    now = 0.0
    while (now := now + source.expovariate(peak)) < seconds:
        if source.random() * peak < rate(now):
            yield now
