from collections.abc import Iterator
from typing import Any

import pytest
from unit.serving.planes import Planes, eventually, occupy, request

from serveprune.config.deployment import DeploymentConfig
from serveprune.config.traffic import ShadowConfig
from serveprune.observability import metrics as series
from serveprune.serving.shadowing import ShadowOutcome

PAIR = ("adder", "1", "dense", "int8")


class Shadowed(Planes):
    """Planes whose dense answers are compared with those of ``int8``, which differ by 99."""

    def shadow(self, ratio: float = 1.0, tier: str = "int8") -> None:
        deployment = DeploymentConfig(shadow=ShadowConfig(tier=tier, sample_ratio=ratio))
        self.shadowing.deploy({"adder": deployment})

    def became(self, outcome: ShadowOutcome) -> float:
        return self.count(series.SHADOWED, *PAIR, outcome)

    def agreements(self) -> float:
        labels = dict(zip(("model", "version", "tier", "shadow"), PAIR, strict=True))
        name = "serveprune_shadow_agreement_ratio_count"
        return self.metrics.registry.get_sample_value(name, labels) or 0


@pytest.fixture
def planes() -> Iterator[Shadowed]:
    planes = Shadowed()
    yield planes
    planes.stop()


def ask(planes: Shadowed, count: int = 1, **fields: Any) -> None:
    for _ in range(count):
        planes.dataplane.submit(request(value=1.0, **fields)).result(30)


def test_requests_are_computed_once_more_after_they_were_answered(planes: Shadowed) -> None:
    planes.shadow()
    planes.sessions["int8"].let_go.clear()
    ask(planes)  # the other tier is held up, and the caller has its answer
    planes.sessions["int8"].let_go.set()
    assert eventually(lambda: planes.became(ShadowOutcome.COMPARED) == 1)
    assert planes.agreements() == 1
    assert eventually(lambda: planes.is_at_rest)


def test_every_fourth_request_is_a_sample_when_the_ratio_is_a_quarter(planes: Shadowed) -> None:
    planes.shadow(0.25)
    for _ in range(12):
        ask(planes)
        assert eventually(lambda: planes.shadowing._held_bytes == 0)
    assert eventually(lambda: planes.became(ShadowOutcome.COMPARED) == 3)


def test_samples_are_of_each_tier_by_itself_however_regular_their_turns_are(planes: Shadowed) -> None:
    """Every other request is a sample, and every twentieth goes to a canary: it gets its share of them."""
    planes.shadow(0.5, tier="lean")
    for number in range(80):
        ask(planes, tier="int8" if number % 20 == 0 else "dense")

    def dropped(tier: str) -> float:
        # The shadow is not ready.
        return planes.count(series.SHADOWED, "adder", "1", tier, "lean", ShadowOutcome.DROPPED)

    assert eventually(lambda: (dropped("int8"), dropped("dense")) == (2, 38))


def test_tier_is_not_compared_with_itself(planes: Shadowed) -> None:
    canary = {"tier": "int8", "steps": [{"setWeight": 10}]}
    shadow = {"tier": "dense", "sample_ratio": 1.0}
    deployment = DeploymentConfig.model_validate({"canary": canary, "shadow": shadow})
    planes.shadowing.deploy({"adder": deployment})
    ask(planes, 3)
    assert not planes.shadowing._waiting
    ask(planes, tier="int8")
    labels = ("adder", "1", "int8", "dense", ShadowOutcome.COMPARED)
    assert eventually(lambda: planes.count(series.SHADOWED, *labels) == 1)


def test_nothing_is_sampled_without_a_shadow(planes: Shadowed) -> None:
    planes.shadow()
    planes.shadowing.deploy({"adder": DeploymentConfig()})
    before = planes.sessions["int8"].runs
    ask(planes, 3)
    assert planes.sessions["int8"].runs == before
    assert not planes.shadowing.is_active


def test_samples_are_dropped_and_no_request_waits_while_others_are_computed(planes: Shadowed) -> None:
    planes.shadow()
    ask(planes)
    assert eventually(lambda: planes.became(ShadowOutcome.COMPARED) == 1)
    before = planes.sessions["int8"].runs
    held = occupy(planes)  # the only executor
    waiting = [planes.dataplane.submit(request(value=1.0)) for _ in range(3)]
    planes.sessions["dense"].let_go.set()
    held.result(30)
    for each in waiting:
        each.result(30)
    assert eventually(lambda: planes.became(ShadowOutcome.COMPARED) + planes.became(ShadowOutcome.DROPPED) == 5)
    assert planes.sessions["int8"].runs >= before


def test_samples_that_wait_too_long_for_a_calm_moment_are_dropped(planes: Shadowed) -> None:
    planes.shadow()
    planes.shadowing._is_calm = lambda: False
    ask(planes, 2)
    planes.skipped_seconds = 60.0
    assert eventually(lambda: planes.became(ShadowOutcome.DROPPED) == 2)
    assert planes.shadowing._held_bytes == 0


def test_few_samples_are_kept(planes: Shadowed) -> None:
    planes.shadow()
    planes.shadowing._is_calm = lambda: False
    ask(planes, 30)
    assert eventually(lambda: planes.became(ShadowOutcome.DROPPED) >= 12)
    assert len(planes.shadowing._waiting) <= 16


def test_failure_of_the_shadow_tier_is_nobodys_failure(
    planes: Shadowed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    planes.shadow()
    monkeypatch.setattr(planes.sessions["int8"], "run", fail)
    ask(planes, 2)
    assert eventually(lambda: planes.became(ShadowOutcome.FAILED) == 2)
    assert planes.count(series.REQUESTS, "adder", "1", "dense", "OK") == 2
    assert planes.count(series.REQUESTS, "adder", "1", "int8", "INTERNAL") == 0


def test_tier_that_is_not_ready_is_not_compared_with(planes: Shadowed) -> None:
    planes.shadow(tier="lean")
    ask(planes)
    labels = ("adder", "1", "dense", "lean", ShadowOutcome.DROPPED)
    assert eventually(lambda: planes.count(series.SHADOWED, *labels) == 1)


def test_stop_waits_for_no_calm_moment(planes: Shadowed) -> None:
    planes.shadow()
    planes.shadowing._is_calm = lambda: False
    ask(planes, 3)
    assert planes.shadowing.stop(timeout_seconds=30)
    ask(planes)
    assert planes.agreements() == 0


def test_series_are_there_before_anything_is_compared(planes: Shadowed) -> None:
    planes.shadow()
    planes.shadowing.expect(planes.model)
    shown = {
        sample.labels["outcome"]: sample.value
        for family in planes.metrics.registry.collect()
        for sample in family.samples
        if sample.name == series.SHADOWED.name and tuple(sample.labels.values())[:4] == PAIR
    }
    assert shown == dict.fromkeys(ShadowOutcome, 0)
