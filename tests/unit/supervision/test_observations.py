from typing import Any

from serveprune.config.deployment import DeploymentConfig
from serveprune.rollouts.canary import side_bounds
from serveprune.rollouts.latency_counts import LatencyCounts
from serveprune.rollouts.rollouts import Observation
from serveprune.rollouts.window import Counts
from serveprune.supervision.observations import Observations


def deployment(tier: str = "int8", **guards: Any) -> DeploymentConfig:
    canary = {"tier": tier, "steps": [{"setWeight": 10}], "guards": {"max_error_ratio": 0.1, **guards}}
    return DeploymentConfig.model_validate({"canary": canary})


DEPLOYMENT = deployment()


def seen(artifact: str | None, answered: int, errors: int = 0, *, of: DeploymentConfig = DEPLOYMENT) -> Observation:
    assert of.canary is not None
    bounds = side_bounds(of.canary)
    stable = Counts(0, LatencyCounts.of((), bounds))
    return Observation(of.canary.tier, artifact, Counts(errors, LatencyCounts.of([0.01] * answered, bounds)), stable)


def test_counts_of_all_processes_add_up_until_they_are_taken() -> None:
    observations = Observations()
    observations.deploy({"minilm": DEPLOYMENT})
    observations.add("0", {"minilm": seen("a", 3, 1)})
    observations.add("1", {"minilm": seen("a", 2)})
    observations.add("0", {"minilm": seen("a", 4)})
    taken = observations.take()["minilm"]
    assert (taken.artifact, taken.canary.requests, taken.canary.errors) == ("a", 10, 1)
    assert observations.take()["minilm"].canary.requests == 0


def test_canary_is_ready_when_every_process_serves_the_same_artifact() -> None:
    observations = Observations()
    observations.deploy({"minilm": DEPLOYMENT})
    assert observations.take()["minilm"].artifact is None
    observations.add("0", {"minilm": seen("a", 0)})
    assert observations.take()["minilm"].artifact == "a"
    observations.add("1", {"minilm": seen(None, 0)})
    assert observations.take()["minilm"].artifact is None
    observations.add("1", {"minilm": seen("b", 0)})
    assert observations.take()["minilm"].artifact is None
    observations.forget("1")
    assert observations.take()["minilm"].artifact == "a"


def test_what_was_counted_in_other_steps_before_the_config_changed_is_left_out() -> None:
    observations, changed = Observations(), deployment(max_p99_ms=12.3)
    observations.deploy({"minilm": DEPLOYMENT})
    observations.add("0", {"minilm": seen("a", 3)})
    observations.deploy({"minilm": changed, "other": DeploymentConfig()})
    observations.add("0", {"minilm": seen("a", 5), "gone": seen("a", 1)})
    observations.add("0", {"minilm": seen("a", 2, of=changed)})
    taken = observations.take()
    assert list(taken) == ["minilm"]
    assert taken["minilm"].canary.requests == 2


def test_artifact_of_another_tier_is_not_that_of_the_canary_after_the_config_changed() -> None:
    observations, changed = Observations(), deployment(tier="lean")
    observations.deploy({"minilm": DEPLOYMENT})
    observations.add("0", {"minilm": seen("a", 3)})
    observations.deploy({"minilm": changed})
    assert observations.take()["minilm"].artifact is None
    observations.add("0", {"minilm": seen("a", 3)})
    assert observations.take()["minilm"].artifact is None
    observations.add("0", {"minilm": seen("b", 2, of=changed)})
    assert observations.take()["minilm"].artifact == "b"
