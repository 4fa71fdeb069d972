"""All parts together, as a server would run them: one request after the other, a tick every second."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from serveprune.config.deployment import DeploymentConfig
from serveprune.rollouts.guards import judge
from serveprune.rollouts.identity import rollout_identity
from serveprune.rollouts.latency_counts import latency_bounds
from serveprune.rollouts.rollout import Change, Phase, Rollout
from serveprune.rollouts.rollout_policy import RolloutPolicy
from serveprune.rollouts.split import WeightedSplit
from serveprune.rollouts.window import Window

CANARY, STABLE = "canary", "stable"
DEPLOYMENT = DeploymentConfig.model_validate(
    {
        "stable": "int8",
        "canary": {
            "tier": "lean",
            "steps": [{"setWeight": 5}, {"pause": "2m"}, {"setWeight": 25}, {"pause": "2m"}],
            "guards": {
                "max_error_ratio": 0.02,
                "max_p99_ms": 80,
                "max_p99_times_stable": 1.5,
                "min_agreement": 0.9,
                "window": "2m",
                "confidence": 0.999,
            },
        },
        "shadow": {"tier": "dense", "sample_ratio": 1.0},
    }
)


@dataclass
class Simulation:
    """Sixty requests a second, to a canary that behaves like this."""

    error_ratio: float = 0.002
    latency_ms: float = 20.0
    agreement: float = 0.97
    changes: list[Change] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)

    def run(self, seconds: int) -> Rollout:
        """Return how the rollout stands in the end."""
        drawn = random.Random(0)
        canary = DEPLOYMENT.canary
        assert canary is not None
        assert canary.guards is not None
        assert canary.guards.max_p99_ms is not None
        bounds = latency_bounds(canary.guards.max_p99_ms / 1e3)
        windows = {side: Window(canary.guards.window, bounds=bounds) for side in (CANARY, STABLE)}
        policy = RolloutPolicy(canary)
        rollout = policy.start(rollout_identity(DEPLOYMENT, artifact="of the canary"))
        split = WeightedSplit({CANARY: 0, STABLE: 1})
        for second in range(seconds):
            sides = Counter(split.choose() for _ in range(60))
            self.served += sides
            for side, requests in sides.items():
                error_ratio, latency_ms = (self.error_ratio, self.latency_ms) if side == CANARY else (0.002, 20.0)
                errors = sum(drawn.random() < error_ratio for _ in range(requests))
                latencies = [drawn.lognormvariate(0, 0.3) * latency_ms / 1e3 for _ in range(requests - errors)]
                windows[side].add(now=second, latencies_seconds=latencies, errors=errors)
                if side == CANARY:
                    agreements = [float(drawn.random() < self.agreement) for _ in latencies]
                    windows[side].add_agreements(agreements, now=second)
            found = judge(
                canary.guards,
                canary=windows[CANARY].counts(now=second),
                stable=windows[STABLE].counts(now=second),
            )
            before = policy.weights(rollout)
            rollout, changes = policy.tick(rollout, now=second, is_ready=second >= 10, judgement=found)
            self.changes += changes
            weights = policy.weights(rollout)
            if weights != before:
                split = WeightedSplit({CANARY: weights.canary_percent, STABLE: weights.stable_percent})
        return rollout


def test_good_canary_is_promoted_after_its_pauses() -> None:
    simulation = Simulation()
    rollout = simulation.run(260)
    assert (rollout.phase, rollout.reason) == (Phase.PROMOTED, "promoted after the last step")
    assert [(change.at, change.canary_percent) for change in simulation.changes] == [
        *((10, 0), (10, 5), (10, 5)),
        *((130, 25), (130, 25)),
        (250, 100),
    ]
    # Two minutes of 5 %, two of 25 %, and nine seconds of all; the tick comes at the end of its second.
    assert simulation.served[CANARY] == 60 * (120 * 0.05 + 120 * 0.25 + 9)


@pytest.mark.parametrize(
    ("simulation", "told"),
    [
        (Simulation(error_ratio=0.10), "error ratio 0."),
        (Simulation(latency_ms=60.0), "share of answers slower than 80 ms: "),
        (Simulation(latency_ms=45.0), " 1.5 times what stable's 99th percentile is at most: "),
        (Simulation(agreement=0.8), "agreement 0."),
    ],
)
def test_bad_canary_is_aborted_in_its_first_pause(simulation: Simulation, told: str) -> None:
    rollout = simulation.run(130)
    assert rollout.phase is Phase.ABORTED
    assert told in rollout.reason
    assert "with 99.9" in rollout.reason
    # It had 3 of the 60 requests a second, and nothing after the judgement.
    aborted = simulation.changes[-1]
    assert simulation.served[CANARY] == 3 * (aborted.at - 10)
