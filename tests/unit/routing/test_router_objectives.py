"""The router with forecasts: objectives and adaptive deployments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from unit.artifacts.artifact_factory import MEASUREMENTS, tier_manifest
from unit.routing.sessions import Identity

from serveprune.artifacts.manifest import Manifest
from serveprune.artifacts.store import Artifact
from serveprune.config.deployment import DeploymentConfig
from serveprune.config.model import ModelConfig
from serveprune.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    ServePruneError,
    Unavailable,
)
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.registry import Model
from serveprune.models.variant import VariantState
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.routing.objective import Objective
from serveprune.routing.route import Route, RouteReason
from serveprune.routing.router import Router
from serveprune.routing.tier_selection import TierChoice
from serveprune.scheduling.forecast import Forecast
from serveprune.scheduling.job import Executable

QUALITY = {"int8": 0.98, "lean": 0.9}
ALONE = {"dense": 0.040, "int8": 0.020, "lean": 0.010}


class Forecasts:
    """A queue of so many seconds before tiers that take what `ALONE` says; `asked` notes each question."""

    def __init__(self) -> None:
        self.wait_seconds = 0.0
        self.asked: list[tuple[str, int, int]] = []

    def forecast(self, executable: Executable, *, rows: int, length: int) -> Forecast:
        tier = executable.identity[2]
        self.asked.append((tier, rows, length))
        return Forecast(self.wait_seconds, ALONE[tier], ALONE[tier])


def measured(quality: float) -> Artifact:
    manifest: Manifest = tier_manifest(
        {}, measurements=MEASUREMENTS.model_copy(update={"quality": {"cosine": quality}})
    )
    return Artifact(folder=Path("nowhere"), manifest=manifest)


class Routing:
    """A router over one model, whose tiers stand as told, and whose time stands still unless it is moved."""

    def __init__(self, deployment: Mapping[str, Any] | None = None, **states: VariantState) -> None:
        config = ModelConfig.model_validate({"source": {"onnx": "m.onnx"}, "tiers": ["dense", "int8", "lean"]})
        self.model = Model("minilm", config, default_tier="dense")
        for tier in self.model.variants:
            state = states.get(tier, VariantState.READY)
            instance = None
            if state is VariantState.READY:
                instance = Instance(Identity(), identity=("minilm", "1", tier), batches=BatchSettings(4))
            artifact = measured(QUALITY[tier]) if tier in QUALITY and state is VariantState.READY else None
            self.model.update(tier, state=state, instance=instance, artifact=artifact)
        self.forecasts, self.metrics, self.now = Forecasts(), Metrics(), 0.0
        self.router = Router(self.forecasts, self.metrics, clock=lambda: self.now)
        self.router.deploy(self.model, DeploymentConfig.model_validate(deployment or {}))

    def route(
        self,
        *,
        tier: str | None = None,
        latency: float | None = None,
        quality: float | None = None,
        wait: float = 0.0,
        elapsed: float = 0.0,
    ) -> Route:
        self.forecasts.wait_seconds = wait
        objective = None if latency is None and quality is None else Objective(latency, quality)
        choice = TierChoice("minilm", tier, strict=False)
        return self.router.route(self.model, choice, objective=objective, rows=3, length=7, elapsed_seconds=elapsed)


BUILDING, FAILED = VariantState.BUILDING, VariantState.FAILED
ADAPTIVE = {"policy": "adaptive", "target_latency_ms": 100}


@pytest.mark.parametrize("tier", [None, "int8"])
def test_fixed_route_asks_for_no_forecast(tier: str | None) -> None:
    routing = Routing()
    chosen = routing.route(tier=tier)
    assert chosen.tier == (tier or "dense")
    assert (chosen.deadline_seconds, chosen.target_seconds) == (None, None)
    assert routing.forecasts.asked == []


def test_forecasts_are_asked_for_the_rows_and_the_length_of_the_request() -> None:
    routing = Routing(lean=BUILDING)
    routing.route(latency=1.0)
    assert routing.forecasts.asked == [("dense", 3, 7), ("int8", 3, 7)]


@pytest.mark.parametrize(
    ("asked", "tier", "explanation"),
    [
        (
            {"latency": 0.060},
            "dense",
            "objective: dense is predicted to answer in 40 ms of 60 ms, with quality 1",
        ),
        (
            {"latency": 0.060, "wait": 0.020},
            "int8",
            "objective: int8 is predicted to answer in 40 ms of 60 ms, with quality 0.98",
        ),
        (
            {"latency": 0.060, "elapsed": 0.030},
            "int8",
            "objective: int8 is predicted to answer in 50 ms of 60 ms, with quality 0.98",
        ),
        # Without time to spare, the first to answer is the one most likely to be in time.
        (
            {"latency": 0.060, "wait": 0.045},
            "lean",
            "objective: lean is predicted to answer in 55 ms of 60 ms, with quality 0.9",
        ),
        (
            {"latency": 0.060, "wait": 0.035, "quality": 0.95},
            "int8",
            "objective: int8 is predicted to answer in 55 ms of 60 ms, with quality 0.98 of at least 0.95",
        ),
        (
            {"quality": 0.95, "wait": 1.0},
            "int8",
            "objective: int8 is predicted to answer in 1020 ms, with quality 0.98 of at least 0.95",
        ),
        (
            {"quality": 1.0},
            "dense",
            "objective: dense is predicted to answer in 40 ms, with quality 1 of at least 1",
        ),
    ],
)
def test_objective_is_met_by_the_best_tier_in_time_or_the_fastest_that_is_good_enough(
    asked: dict[str, float], tier: str, explanation: str
) -> None:
    chosen = Routing().route(**asked)  # type: ignore[arg-type]
    assert (chosen.tier, chosen.reason, chosen.explanation) == (tier, RouteReason.OBJECTIVE, explanation)
    assert chosen.instance.identity[2] == tier
    assert (chosen.deadline_seconds, chosen.target_seconds) == (asked.get("latency"), None)


@pytest.mark.parametrize(
    ("states", "asked", "error", "message"),
    [
        (
            {},
            {"tier": "int8", "latency": 0.050},
            InvalidArgument,
            "asks for the tier 'int8' and sets max_latency_ms or min_quality; expected one or the other",
        ),
        (
            {},
            {"latency": 0.005},
            InvalidArgument,
            "within 5 ms even on an idle server; possible are: dense 40 ms (quality 1), int8 20 ms (quality 0.98), ",
        ),
        (
            {"lean": FAILED},
            {"latency": 0.015, "quality": 0.99},
            InvalidArgument,
            "no tier of that quality answers within 15 ms even on an idle server; possible are: dense 40 ms (qual",
        ),
        (
            {"lean": BUILDING},
            {"latency": 0.015},
            Unavailable,
            "int8 20 ms (quality 0.98)); lean may, but is still being built; retry later",
        ),
        (
            {},
            {"latency": 0.050, "wait": 0.100, "quality": 0.95},
            ResourceExhausted,
            "no tier would answer within 50 ms now: dense in 140 ms, int8 in 120 ms; allow more, or retry in 70 ms",
        ),
        (
            {},
            {"latency": 0.050, "elapsed": 0.060},
            DeadlineExceeded,
            "model minilm: max_latency_ms is 50 ms, and 60 ms had passed before its turn",
        ),
        (
            {},
            {"latency": 0.005, "elapsed": 0.060},
            InvalidArgument,
            "no tier answers within 5 ms even on an idle server",
        ),
        ({"dense": BUILDING}, {"quality": 0.99}, Unavailable, "dense is still being built; retry later"),
        ({"dense": FAILED}, {"quality": 0.99}, FailedPrecondition, "the build of dense failed"),
    ],
)
def test_demand_that_cannot_be_met_is_refused_with_what_would_be_possible(
    states: dict[str, VariantState], asked: dict[str, Any], error: type[ServePruneError], message: str
) -> None:
    with pytest.raises(error) as caught:
        Routing(None, **states).route(**asked)
    assert message in caught.value.message


def test_demand_that_load_forbids_says_when_to_come_back() -> None:
    with pytest.raises(ResourceExhausted) as caught:
        Routing().route(latency=0.050, wait=0.100)
    # Lean would be done after 110 ms.
    assert caught.value.retry_after_seconds == pytest.approx(0.060)


@pytest.mark.parametrize(
    ("wait", "elapsed", "tier", "reason", "explanation"),
    [
        (0.0, 0.0, "dense", "adaptive", "dense is predicted to answer in 40 ms of 100 ms"),
        (
            0.035,
            0.0,
            "int8",
            "adaptive_load",
            "int8 is predicted to answer in 55 ms of 100 ms; dense (75 ms) waits until the load has fallen",
        ),
        (
            0.040,
            0.005,
            "lean",
            "adaptive_load",
            "lean is predicted to answer in 55 ms of 100 ms; dense (85 ms) waits until the load has fallen",
        ),
        (
            0.0,
            0.200,
            "lean",
            "adaptive",
            "lean is the fastest, predicted to answer in 210 ms of 100 ms",
        ),
    ],
)
def test_adaptive_deployment_serves_the_best_tier_in_time_and_says_why(
    wait: float, elapsed: float, tier: str, reason: str, explanation: str
) -> None:
    chosen = Routing(ADAPTIVE).route(wait=wait, elapsed=elapsed)
    assert (chosen.tier, chosen.reason, chosen.explanation) == (tier, reason, f"{reason}: {explanation}")
    assert (chosen.wanted, chosen.instance.identity[2]) == ("dense", tier)
    assert (chosen.target_seconds, chosen.deadline_seconds) == (0.1, None)


def test_adaptive_deployment_serves_the_fastest_tier_when_its_target_is_impossible() -> None:
    chosen = Routing({"policy": "adaptive", "target_latency_ms": 5}).route(wait=1.0)
    assert chosen.explanation == (
        "adaptive: no tier answers within 5 ms even on an idle server; lean is the fastest with 10 ms"
    )


def test_adaptive_deployment_rejects_what_no_tier_would_answer_in_time() -> None:
    with pytest.raises(ResourceExhausted) as caught:
        Routing(ADAPTIVE | {"min_quality": 0.95}).route(wait=0.070)
    assert caught.value.message == (
        "model minilm: no tier would answer within 100 ms now; the first, int8, in 90 ms; retry in 28.3 ms"
    )
    assert caught.value.retry_after_seconds == pytest.approx(0.070 - (0.100 - 0.027) / 1.75)


def test_adaptive_deployment_never_chooses_a_tier_below_its_quality() -> None:
    routing = Routing(ADAPTIVE | {"min_quality": 0.95})
    assert routing.route(wait=0.030).tier == "int8"
    assert {tier for tier, _, _ in routing.forecasts.asked} == {"dense", "int8"}
    with pytest.raises(ResourceExhausted):
        routing.route(wait=0.045)


def test_adaptive_deployment_uses_what_is_ready() -> None:
    assert Routing(ADAPTIVE, int8=BUILDING).route(wait=0.035).tier == "lean"
    assert Routing(ADAPTIVE, dense=BUILDING).route().tier == "int8"
    with pytest.raises(Unavailable, match="dense is still being built"):
        Routing(ADAPTIVE, dense=BUILDING, int8=BUILDING, lean=BUILDING).route()


def test_tier_that_is_asked_for_is_served_whatever_the_deployment() -> None:
    routing = Routing(ADAPTIVE)
    chosen = routing.route(tier="lean", wait=9.0)
    assert (chosen.tier, chosen.reason, chosen.target_seconds) == ("lean", "requested", None)
    assert routing.forecasts.asked == []


def test_objective_goes_before_the_deployment_but_keeps_its_quality() -> None:
    routing = Routing(ADAPTIVE | {"min_quality": 0.95})
    assert routing.route(latency=1.0).reason == "objective"
    assert routing.route(latency=0.030).tier == "int8"
    with pytest.raises(InvalidArgument, match="no tier of that quality"):
        routing.route(latency=0.015)
    assert routing.route(latency=0.015, quality=0.5).tier == "lean"


def test_ceiling_and_its_changes_are_shown() -> None:
    routing = Routing(ADAPTIVE)
    up = routing.metrics.counter(series.ADAPTIVE_STEPS, "minilm", "1", "up")
    down = routing.metrics.counter(series.ADAPTIVE_STEPS, "minilm", "1", "down")
    ceiling = routing.metrics.gauge(series.ADAPTIVE_CEILING, "minilm", "1")
    assert (up._value.get(), down._value.get(), ceiling._value.get()) == (0, 0, 0)
    for routing.now in (1.0, 1.1):
        routing.route(wait=0.035)
    assert (up._value.get(), down._value.get(), ceiling._value.get()) == (0, 1, 1)
    routing.now = 1.25
    assert routing.router.adaptive_state(routing.model) == {
        "target_latency_ms": 100.0,
        "min_quality": None,
        "ceiling": "int8",
        "ceiling_for_seconds": pytest.approx(0.15),
        "steps_up": 0,
        "steps_down": 1,
    }
    routing.now = 5.0
    assert routing.route().tier == "dense"
    assert (up._value.get(), down._value.get(), ceiling._value.get()) == (1, 1, 0)


def test_model_without_an_adaptive_deployment_has_no_adaptive_state() -> None:
    routing = Routing()
    assert routing.router.adaptive_state(routing.model) is None
