"""The adaptive policy on a simulated server: what its figures were tuned for, and what it must go on to hold."""

import math
import random
from collections.abc import Callable

import pytest

from serveprune.routing.adaptive_policy import AdaptivePolicy, AdaptiveState, Verdict
from serveprune.routing.candidate import Candidate
from serveprune.scheduling.forecast import Forecast

from .simulated_server import Outcome, SimulatedServer, SimulatedTier, poisson

TARGET_SECONDS = 0.150
DENSE = SimulatedTier("dense", rank=0, quality=1.0, alone_seconds=0.030)
INT8 = SimulatedTier("int8", rank=1, quality=0.99, alone_seconds=0.014)
LEAN = SimulatedTier("lean", rank=2, quality=0.95, alone_seconds=0.008)
TINY = SimulatedTier("tiny", rank=3, quality=0.90, alone_seconds=0.005)
TIERS = (DENSE, INT8, LEAN, TINY)
MAX_BATCH = 4
CAPACITY = 2 * MAX_BATCH / DENSE.mean_seconds(MAX_BATCH)
"""Requests per second that two executors answer with dense in full batches."""

PHASE_SECONDS = 60.0
FORECASTS: dict[str, Callable[[random.Random], float]] = {
    "right": lambda _: 1.0,
    "scattered": lambda source: source.uniform(0.8, 1.2),
    "too short": lambda _: 0.8,
    "too long": lambda _: 1.2,
}


def constant(now: float) -> float:
    return 1.6 * CAPACITY


def diurnal(now: float) -> float:
    """From a tenth of the capacity to two and a half times, as over a day."""
    return CAPACITY * (1.3 - 1.2 * math.cos(2 * math.pi * now / PHASE_SECONDS))


def spikes(now: float) -> float:
    """Half the capacity, but for 4 of every 20 seconds three times."""
    return (3.0 if now % 20 < 4 else 0.5) * CAPACITY


def bursty(now: float) -> float:
    phase = (constant, diurnal, spikes)[int(now // PHASE_SECONDS)]
    return phase(now % PHASE_SECONDS)


def arrivals(rate: Callable[[float], float], *, seed: int, seconds: float = 3 * PHASE_SECONDS) -> list[float]:
    return list(poisson(rate, peak=3 * CAPACITY, seconds=seconds, seed=seed))


class Adaptive:
    """The policy as the simulated server's choice."""

    def __init__(self, tiers: tuple[SimulatedTier, ...] = TIERS) -> None:
        self.policy = AdaptivePolicy(TARGET_SECONDS)
        self.state: AdaptiveState = self.policy.start(now=0.0)
        self.tiers = tiers

    def __call__(self, now: float, forecast: Callable[[SimulatedTier], Forecast]) -> SimulatedTier | None:
        candidates = [Candidate(tier.name, tier.rank, tier.quality, forecast(tier)) for tier in self.tiers]
        self.state, decision = self.policy.decide(self.state, candidates, now=now)
        if decision.verdict is Verdict.REJECTED:
            return None
        return next(tier for tier in self.tiers if tier.name == decision.candidate.tier)


@pytest.fixture(scope="module")
def moments() -> list[float]:
    return arrivals(bursty, seed=1)


@pytest.fixture(scope="module")
def fixed(moments: list[float]) -> dict[str, Outcome]:
    """What each tier makes of the bursty trace when it serves all of it."""
    return {
        tier.name: SimulatedServer(max_batch=MAX_BATCH, seed=1).run(moments, lambda now, forecast, tier=tier: tier)  # type: ignore[misc]
        for tier in TIERS
    }


@pytest.mark.parametrize("forecast", FORECASTS)
def test_adaptive_keeps_the_target_at_a_higher_quality_than_every_fixed_tier_that_keeps_it(
    forecast: str, moments: list[float], fixed: dict[str, Outcome]
) -> None:
    server = SimulatedServer(max_batch=MAX_BATCH, forecast_error=FORECASTS[forecast], seed=1)

    outcome = server.run(moments, Adaptive())

    kept = outcome.kept(TARGET_SECONDS)
    as_good = [each.mean_quality for each in fixed.values() if each.kept(TARGET_SECONDS) >= kept - 0.01]
    assert kept >= 0.99
    assert outcome.rejected_fraction < 0.005
    assert fixed["dense"].kept(TARGET_SECONDS) < 0.6
    assert as_good
    assert outcome.mean_quality > max(as_good)


@pytest.mark.parametrize("rate", [constant, diurnal, spikes], ids=["constant", "diurnal", "spikes"])
@pytest.mark.parametrize("forecast", FORECASTS)
def test_ceiling_does_not_flap_whatever_the_load(rate: Callable[[float], float], forecast: str) -> None:
    adaptive = Adaptive()
    server = SimulatedServer(max_batch=MAX_BATCH, forecast_error=FORECASTS[forecast], seed=3)

    outcome = server.run(arrivals(rate, seed=3, seconds=PHASE_SECONDS), adaptive)

    assert outcome.kept(TARGET_SECONDS) >= 0.99
    # Of thousands of requests; three tiers down and up again for three spikes are 18 already.
    assert adaptive.state.steps_up + adaptive.state.steps_down <= 36


@pytest.mark.parametrize("forecast", FORECASTS)
def test_requests_above_what_the_fastest_tier_can_do_are_rejected_and_the_others_kept(forecast: str) -> None:
    adaptive = Adaptive((DENSE, INT8))
    server = SimulatedServer(max_batch=MAX_BATCH, forecast_error=FORECASTS[forecast], seed=4)

    outcome = server.run(arrivals(lambda now: 3 * CAPACITY, seed=4, seconds=30.0), adaptive)

    assert outcome.kept(TARGET_SECONDS) >= 0.99
    # Int8 does 30 / 14 of dense's capacity.
    assert outcome.rejected_fraction == pytest.approx(1 - 30 / 14 / 3, abs=0.05)


def test_every_request_gets_dense_when_the_load_is_low() -> None:
    adaptive = Adaptive()
    server = SimulatedServer(max_batch=MAX_BATCH, seed=5)

    outcome = server.run(arrivals(lambda now: 0.3 * CAPACITY, seed=5, seconds=60.0), adaptive)

    assert outcome.mean_quality > 0.999
    assert outcome.rejected == 0
