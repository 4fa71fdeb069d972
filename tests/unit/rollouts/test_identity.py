import copy
from collections.abc import Callable
from typing import Any

import pytest

from serveprune.config.deployment import DeploymentConfig
from serveprune.rollouts.identity import rollout_identity

WRITTEN: dict[str, Any] = {
    "stable": "int8",
    "canary": {"tier": "lean", "steps": [{"setWeight": 5}, {"pause": "10m"}], "guards": {"max_p99_ms": 40}},
}


def identity(change: Callable[[dict[str, Any]], object] = lambda _: None, *, artifact: str = "a" * 64) -> str:
    written = copy.deepcopy(WRITTEN)
    change(written)
    return rollout_identity(DeploymentConfig.model_validate(written), artifact=artifact)


@pytest.mark.parametrize(
    "change",
    [
        lambda written: written["canary"].update(tier="sparse"),
        lambda written: written["canary"]["steps"].append({"pause": "1m"}),
        lambda written: written["canary"]["steps"][0].update(setWeight=6),
        lambda written: written["canary"]["steps"][1].update(pause={}),
        lambda written: written["canary"]["guards"].update(max_p99_ms=41),
        lambda written: written["canary"].pop("guards"),
        lambda written: written.update(stable="dense"),
        lambda written: written.update(policy="adaptive", target_latency_ms=50, stable=None),
    ],
)
def test_rollout_is_another_one_when_the_canary_or_the_stable_side_changes(change: Callable[[Any], object]) -> None:
    assert identity(change) != identity()


def test_rollout_is_another_one_when_the_artifact_changes() -> None:
    assert identity(artifact="b" * 64) != identity()


@pytest.mark.parametrize(
    "change",
    [
        lambda written: None,
        lambda written: written.update(share=2, max_queued_requests=5),
        lambda written: written.update(shadow={"tier": "dense"}),
        lambda written: written.update(sticky={"by": "request_id"}),
        # The same in other words.
        lambda written: written["canary"]["steps"][1].update(pause={"duration": 600}),
        lambda written: written["canary"]["guards"].update(min_samples=200, window="600s"),
    ],
)
def test_rollout_is_the_same_when_something_else_changes(change: Callable[[Any], object]) -> None:
    assert identity(change) == identity()


def test_identity_is_that_of_the_release_before() -> None:
    # A release that changes it starts every rollout anew.
    assert identity() == "1dd69f203d01f770ef1de905f637d496099c120eda1d55805fcef7b406753051"
