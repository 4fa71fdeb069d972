from typing import Any

import pytest

from serveprune.artifacts.manifest import LatencyRecord, Measurements
from serveprune.config.profile import GateConfig
from serveprune.evaluation.gate import judge


def measurements(
    *,
    cosine: float = 0.99,
    ratio: float = 0.5,
    deviation: float = 0.01,
    tier_bytes: int = 250,
    more: dict[str, float] | None = None,
) -> Measurements:
    return Measurements(
        metric="cosine",
        quality={"cosine": cosine, "sqnr_db": 20.0, **(more or {})},
        batch_deviation=deviation,
        samples=8,
        evaluation_set="evaluation.jsonl",
        latency=LatencyRecord(
            dense_ms=20.0,
            tier_ms=20.0 * ratio,
            ratio=ratio,
            ratio_low=ratio * 0.9,
            ratio_high=ratio * 1.1,
            batch_size=8,
            rounds=60,
            threads=1,
        ),
        dense_bytes=1000,
        tier_bytes=tier_bytes,
    )


def test_nothing_is_refused_when_every_bound_is_met() -> None:
    gate = GateConfig(min_quality=0.99, max_latency_ratio=0.5, max_batch_deviation=0.01)

    assert judge(measurements(), gate) == ()


NEITHER = (
    "it is neither faster (latency ratio 0.980, expected below 0.98) nor smaller (size ratio 0.980, expected below "
    "0.98) than dense"
)


@pytest.mark.parametrize(
    ("measured", "gate", "reason"),
    [
        ({"cosine": 0.912}, {"min_quality": 0.97}, "cosine 0.912 is below the gate's min_quality 0.97"),
        ({"cosine": 0.96996}, {"min_quality": 0.97}, "cosine 0.96996 is below the gate's min_quality 0.97"),
        (
            {"ratio": 0.81},
            {"max_latency_ratio": 0.8},
            "latency ratio 0.81 (16.2 ms, dense 20 ms) is above the gate's max_latency_ratio 0.8",
        ),
        (
            {"deviation": 0.0203},
            {"max_batch_deviation": 0.02},
            "batch deviation 0.0203 is above the gate's max_batch_deviation 0.02",
        ),
        (
            {"ratio": 0.98, "tier_bytes": 980},
            {},
            NEITHER,
        ),
        ({"more": {"finite_fraction": 0.625}}, {}, "3 of 8 samples are answered with NaN or infinity"),
    ],
)
def test_tier_is_refused_with_figures(measured: dict[str, Any], gate: dict[str, float], reason: str) -> None:
    assert judge(measurements(**measured), GateConfig(**gate)) == (reason,)


@pytest.mark.parametrize("measured", [{"ratio": 0.97, "tier_bytes": 2000}, {"ratio": 3.0, "tier_bytes": 979}])
def test_faster_or_smaller_is_enough(measured: dict[str, Any]) -> None:
    assert judge(measurements(**measured), GateConfig()) == ()


def test_every_reason_is_given_at_once() -> None:
    gate = GateConfig(min_quality=0.97, max_latency_ratio=0.9, max_batch_deviation=0.1)
    measured = measurements(cosine=-1.0, ratio=1.2, deviation=2.0, tier_bytes=1001, more={"finite_fraction": 0.0})

    assert len(judge(measured, gate)) == 5
