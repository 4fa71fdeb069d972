from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.artifacts.artifact_factory import MEASUREMENTS, tier_manifest
from unit.routing.sessions import Identity
from unit.routing.test_router_objectives import Forecasts

from serveprune.artifacts.store import Artifact
from serveprune.config.deployment import DeploymentConfig
from serveprune.config.model import ModelConfig
from serveprune.config.traffic import StickyConfig
from serveprune.errors import InvalidArgument, ResourceExhausted
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.registry import Model
from serveprune.models.variant import VariantState
from serveprune.observability.metrics import Metrics
from serveprune.oip.messages import InferenceRequest
from serveprune.rollouts.side import Side
from serveprune.routing.objective import Objective
from serveprune.routing.route import Route, RouteReason
from serveprune.routing.router import Router
from serveprune.routing.tier_selection import TierChoice
from serveprune.routing.traffic import CanaryOrder, sticky_key

CANARY = {"canary": {"tier": "int8", "steps": [{"setWeight": 10}]}}
NO_TIER = TierChoice("minilm", None, strict=False)


def artifact() -> Artifact:
    return Artifact(folder=Path("nowhere"), manifest=tier_manifest({}, recipe="0" * 64, measurements=MEASUREMENTS))


class Routing:
    """A router over one model of three tiers that are ready."""

    def __init__(self, **deployment: Any) -> None:
        config = ModelConfig.model_validate({"source": {"onnx": "m.onnx"}, "tiers": ["dense", "int8", "lean"]})
        self.deployment = DeploymentConfig.model_validate(deployment)
        self.model = Model("minilm", config, default_tier=self.deployment.default_tier)
        self.artifact = artifact()
        for tier in self.model.variants:
            instance = Instance(Identity(), identity=("minilm", "1", tier), batches=BatchSettings(4))
            self.model.update(tier, state=VariantState.READY, instance=instance, artifact=self.artifact)
        self.forecasts = Forecasts()
        self.router = Router(self.forecasts, Metrics())
        self.router.deploy(self.model, self.deployment)
        self.canary, self.stable = Side((1.0,)), Side((1.0,))

    def order(self, percent: int, artifact: str | None = None) -> None:
        key = artifact or self.artifact.key
        self.router.obey(self.model, CanaryOrder(percent, key, self.canary, self.stable))

    def route(self, choice: TierChoice = NO_TIER, *, objective: Objective | None = None, **request: Any) -> Route:
        key = self.router.sticky_key(self.model, InferenceRequest("minilm", (), **request))
        return self.router.route(
            self.model, choice, objective=objective, rows=1, length=1, elapsed_seconds=0.0, sticky_key=key
        )

    def tiers(self, count: int, **request: Any) -> Counter[str]:
        return Counter(self.route(**request).tier for _ in range(count))


def test_split_gives_each_tier_exactly_its_weight() -> None:
    routing = Routing(split={"int8": 3, "dense": 1})
    assert routing.tiers(400) == {"int8": 300, "dense": 100}
    route = routing.route()
    assert (route.reason, route.explanation, route.side) == (RouteReason.SPLIT, "split", None)


def test_tier_of_a_split_that_is_not_ready_leaves_its_requests_to_the_default() -> None:
    routing = Routing(split={"int8": 3, "dense": 1})
    routing.model.update("dense", state=VariantState.BUILDING, instance=None)
    routing.model.update("lean", state=VariantState.BUILDING, instance=None)
    assert routing.tiers(8) == {"int8": 8}


def test_tier_of_a_split_that_the_model_does_not_have_leaves_its_requests_to_the_default() -> None:
    routing = Routing(split={"int8": 1, "other": 1})
    assert routing.tiers(8) == {"int8": 8}


def test_canary_gets_nothing_before_its_rollout_says_so() -> None:
    routing = Routing(**CANARY)
    assert routing.tiers(100) == {"dense": 100}
    assert routing.route().side is None


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, {"dense": 200}), (10, {"dense": 180, "int8": 20}), (100, {"int8": 200})]
)
def test_canary_gets_its_part_exactly(percent: int, expected: dict[str, int]) -> None:
    routing = Routing(**CANARY)
    routing.order(percent)
    assert routing.tiers(200) == expected


def test_each_side_is_told_of_its_own_requests() -> None:
    routing = Routing(**CANARY)
    routing.order(50)
    routes = [routing.route() for _ in range(10)]
    assert {(route.tier, route.side) for route in routes} == {("int8", routing.canary), ("dense", routing.stable)}
    assert {route.explanation for route in routes if route.tier == "int8"} == {
        "canary: 50 % of the requests go to the canary"
    }


def test_request_that_names_a_tier_is_no_part_of_a_rollout() -> None:
    routing = Routing(**CANARY)
    routing.order(100)
    route = routing.route(TierChoice("minilm", "dense", strict=False))
    assert (route.tier, route.reason, route.side) == ("dense", RouteReason.REQUESTED, None)


def test_other_artifact_under_the_canarys_name_gets_nothing() -> None:
    routing = Routing(**CANARY)
    routing.order(100, artifact="f" * 64)
    assert routing.tiers(20) == {"dense": 20}


def test_canary_that_is_not_ready_leaves_its_part_to_the_stable_side() -> None:
    routing = Routing(**CANARY)
    routing.order(100)
    routing.model.update("int8", state=VariantState.FAILED, instance=None)
    assert routing.tiers(20) == {"dense": 20}
    assert routing.route().side is routing.stable


def test_stable_side_of_a_canary_may_be_adaptive() -> None:
    routing = Routing(policy="adaptive", target_latency_ms=1000, **CANARY)
    routing.order(50)
    reasons = Counter(routing.route().reason for _ in range(20))
    assert reasons == {RouteReason.CANARY: 10, RouteReason.ADAPTIVE: 10}


@pytest.mark.parametrize("wait", [0.0, 10.0], ids=["idle", "loaded"])
@pytest.mark.parametrize("percent", [None, 0, 50])
def test_adaptive_stable_side_does_not_choose_the_canary(percent: int | None, wait: float) -> None:
    """Least of all when it was taken back: under load it is the smaller tier, which the policy would take."""
    canary = {"tier": "lean", "steps": [{"setWeight": 10}]}
    routing = Routing(policy="adaptive", target_latency_ms=15, canary=canary)
    routing.forecasts.wait_seconds = wait
    if percent is not None:
        routing.order(percent)
    tiers: Counter[str] = Counter()
    for _ in range(20):
        try:
            tiers[routing.route().tier] += 1
        except ResourceExhausted:
            tiers["refused"] += 1
    assert tiers["lean"] == (percent or 0) / 5
    routing.order(100)
    assert routing.tiers(20) == {"lean": 20}


def test_objective_is_not_met_by_a_canary_before_it_is_promoted() -> None:
    routing = Routing(canary={"tier": "lean", "steps": [{"setWeight": 10}]})
    what_int8_can, what_lean_can = Objective(0.030, None), Objective(0.015, None)
    for percent in (0, 50):
        routing.order(percent)
        assert routing.route(objective=what_int8_can).tier == "int8"
        with pytest.raises(InvalidArgument, match="no tier"):
            routing.route(objective=what_lean_can)
    routing.order(100)
    assert routing.route(objective=what_lean_can).tier == "lean"


def test_canary_that_was_taken_back_stands_in_for_no_other_tier() -> None:
    routing = Routing(stable="lean", **CANARY)
    routing.order(0)
    routing.model.update("lean", state=VariantState.BUILDING, instance=None)
    assert routing.tiers(20) == {"dense": 20}
    assert routing.route(TierChoice("minilm", "lean", strict=False)).tier == "dense"
    assert routing.route(TierChoice("minilm", "int8", strict=False)).tier == "int8"
    routing.order(100)
    assert routing.tiers(20) == {"int8": 20}


@pytest.mark.parametrize(
    ("sticky", "request_of"),
    [
        ({"by": "request_id"}, lambda user: {"id": user}),
        ({"by": "parameter", "name": "user"}, lambda user: {"parameters": {"user": user}}),
        (
            {"by": "header", "name": "X-User"},
            lambda user: {"headers": [(b"accept", b"*/*"), (b"x-user", user.encode())]},
        ),
        ({"by": "header", "name": "X-User"}, lambda user: {"headers": (("x-user", user),)}),
    ],
    ids=["request_id", "parameter", "header", "metadata"],
)
def test_requests_of_one_key_stay_with_one_tier(
    sticky: dict[str, str], request_of: Callable[[str], dict[str, Any]]
) -> None:
    routing = Routing(**CANARY, sticky=sticky)
    users = [f"user {number}" for number in range(400)]
    before: set[str] = set()
    for percent in (10, 30, 60):
        routing.order(percent)
        found = {user: routing.tiers(3, **request_of(user)) for user in users}
        assert all(len(tiers) == 1 for tiers in found.values())
        canary = {user for user, tiers in found.items() if "int8" in tiers}
        assert before <= canary
        assert len(canary) == pytest.approx(4 * percent, abs=60)
        before = canary
    assert routing.tiers(100) == {"int8": 60, "dense": 40}


def test_key_of_a_number_is_its_text() -> None:
    sticky = StickyConfig.model_validate({"by": "parameter", "name": "user"})
    assert sticky_key(sticky, InferenceRequest("minilm", (), parameters={"user": 7})) == "7"
    assert sticky_key(sticky, InferenceRequest("minilm", ())) is None


@pytest.mark.parametrize("given", [None, ""])
def test_request_without_an_id_has_no_key(given: str | None) -> None:
    sticky = StickyConfig(by="request_id")
    assert sticky_key(sticky, InferenceRequest("minilm", (), id=given)) is None


def test_traffic_goes_on_where_it_was_when_something_else_changes() -> None:
    routing = Routing(**CANARY)
    routing.order(50)
    routing.route()
    routing.router.deploy(routing.model, routing.deployment.model_copy(update={"share": 2.0}))
    assert routing.tiers(2) == {"int8": 1, "dense": 1}
    routing.router.deploy(routing.model, DeploymentConfig())
    assert routing.tiers(10) == {"dense": 10}
