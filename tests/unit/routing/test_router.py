import pytest
from unit.routing.sessions import Identity

from serveprune.config.model import ModelConfig
from serveprune.errors import FailedPrecondition, NotFound, Unavailable
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.registry import Model
from serveprune.models.variant import VariantState
from serveprune.routing.router import route
from serveprune.routing.tier_selection import TierChoice


def model(default_tier: str = "dense", **states: VariantState) -> Model:
    config = ModelConfig.model_validate({"source": {"onnx": "m.onnx"}, "tiers": ["dense", "int8", "lean"]})
    made = Model("minilm", config, default_tier=default_tier)
    for tier, state in states.items():
        instance = None
        if state is VariantState.READY:
            instance = Instance(Identity(), identity=("minilm", "1", tier), batches=BatchSettings(4))
        made.update(tier, state=state, instance=instance, reasons=("cosine 0.9 is too low",))
    return made


READY, BUILDING, REFUSED, FAILED = (
    VariantState.READY,
    VariantState.BUILDING,
    VariantState.REFUSED,
    VariantState.FAILED,
)


@pytest.mark.parametrize(
    ("states", "asked", "served", "explanation"),
    [
        ({"dense": READY, "int8": READY}, "int8", "int8", "requested"),
        ({"dense": READY, "int8": READY}, None, "dense", "default"),
        (
            {"dense": READY, "int8": BUILDING},
            "int8",
            "dense",
            "building: int8 is still being built; dense is the nearest better tier",
        ),
        (
            {"dense": READY, "int8": READY, "lean": FAILED},
            "lean",
            "int8",
            "failed: the build of lean failed; int8 is the nearest better tier",
        ),
        (
            {"dense": READY, "int8": REFUSED, "lean": READY},
            "int8",
            "dense",
            "refused: int8 was refused by its gate; dense is the nearest better tier",
        ),
    ],
)
def test_route_is_the_wanted_tier_or_the_nearest_better_one(
    states: dict[str, VariantState], asked: str | None, served: str, explanation: str
) -> None:
    chosen = route(model(**states), TierChoice("minilm", asked, strict=False))
    assert (chosen.tier, chosen.explanation) == (served, explanation)


def test_route_is_the_deployments_default_when_the_request_names_no_tier() -> None:
    chosen = route(model(default_tier="int8", dense=READY, int8=READY), TierChoice("minilm", None, strict=False))
    assert (chosen.tier, chosen.reason) == ("int8", "default")


@pytest.mark.parametrize(
    ("states", "asked", "strict", "error", "message"),
    [
        ({"dense": READY, "int8": BUILDING}, "int8", True, Unavailable, "int8 is still being built; retry later"),
        ({"dense": BUILDING, "int8": READY}, "dense", False, Unavailable, "dense is still being built"),
        (
            {"dense": READY, "int8": REFUSED},
            "int8",
            True,
            FailedPrecondition,
            "int8 was refused by its gate: cosine 0.9 is too low",
        ),
        ({"dense": FAILED}, None, False, FailedPrecondition, "the build of dense failed: cosine 0.9 is too low"),
        ({"dense": READY}, "tiny", False, NotFound, "has no tier 'tiny'; it has: dense, int8, lean"),
    ],
)
def test_route_is_refused_when_no_tier_may_serve(
    states: dict[str, VariantState], asked: str | None, strict: bool, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        route(model(**states), TierChoice("minilm", asked, strict=strict))


def test_unavailable_says_when_to_come_back_when_the_tier_is_being_built() -> None:
    with pytest.raises(Unavailable) as caught:
        route(model(dense=READY, int8=BUILDING), TierChoice("minilm", "int8", strict=True))
    assert caught.value.retry_after_seconds == 5.0
