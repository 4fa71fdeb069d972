import math
import random
import statistics
import time
from collections.abc import Callable

import numpy as np

from serveprune.artifacts.manifest import LatencyRecord

_WARM_UP_CALLS = 3
_SHORTEST_TIMING_SECONDS = 0.002
"""Quicker calls are repeated within one timing, so that the clock and the scheduler do not decide the ratio."""

_MOST_REPEATS = 100
_LEAST_CALL_SECONDS = 1e-9


def latency_clock(threads: int) -> Callable[[], float]:
    """Return what to time a run on the processor with, in seconds from any fixed moment.

    The processor time of this process if one thread computes, which others on the machine hardly disturb: a build
    runs beside the server, at a lower priority. Else the time on the wall.
    """
    return time.process_time if threads == 1 else time.perf_counter


def measure_latency(
    dense: Callable[[], object],
    tier: Callable[[], object],
    *,
    batch_size: int,
    threads: int,
    rounds: int = 60,
    min_rounds: int = 10,
    budget_seconds: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> LatencyRecord:
    """Time two graphs in turns and record the ratio of their latencies.

    Both are run warm first. Each round times both once, in random order, so that what else the machine does
    meets both alike; the ratio is taken within the round. Calls shorter than 2 ms are repeated within a timing.

    Args:
        dense: Runs one batch on the dense graph.
        tier: Runs the same batch on the tier.
        batch_size: Rows in that batch, for the record.
        threads: Threads both graphs were loaded with, for the record.
        rounds: Most rounds.
        min_rounds: Rounds that are run whatever they take.
        budget_seconds: No further round begins after so long.
        clock: Seconds from any fixed moment.
        seed: Of the random order.
    """
    order = random.Random(seed)
    calls = (dense, tier)
    for call in calls:
        _timed(call, repeats=_WARM_UP_CALLS, clock=clock)
    repeats = [_repeats(_timed(call, repeats=1, clock=clock)) for call in calls]
    seconds: tuple[list[float], list[float]] = ([], [])
    start = clock()
    for finished in range(rounds):
        if finished >= min_rounds and clock() - start >= budget_seconds:
            break
        first = order.randrange(2)
        for which in (first, 1 - first):
            seconds[which].append(_timed(calls[which], repeats=repeats[which], clock=clock))
    ratios = [after / before for before, after in zip(*seconds, strict=True)]
    low, high = np.percentile(ratios, [10, 90])
    return LatencyRecord(
        dense_ms=statistics.median(seconds[0]) * 1000,
        tier_ms=statistics.median(seconds[1]) * 1000,
        ratio=statistics.median(ratios),
        ratio_low=float(low),
        ratio_high=float(high),
        batch_size=batch_size,
        rounds=len(ratios),
        threads=threads,
    )


def _repeats(call_seconds: float) -> int:
    return min(max(math.ceil(_SHORTEST_TIMING_SECONDS / call_seconds), 1), _MOST_REPEATS)


def _timed(call: Callable[[], object], *, repeats: int, clock: Callable[[], float]) -> float:
    """Return the mean seconds of one call."""
    start = clock()
    for _ in range(repeats):
        call()
    return max((clock() - start) / repeats, _LEAST_CALL_SECONDS)
