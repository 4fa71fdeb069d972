"""The shell around the policy: what is counted, stored, written down and shown."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serveprune.config.deployment import DeploymentConfig
from serveprune.errors import FailedPrecondition, InvalidArgument, NotFound
from serveprune.observability.metrics import Metrics
from serveprune.rollouts.canary import side_bounds
from serveprune.rollouts.latency_counts import LatencyCounts
from serveprune.rollouts.rollouts import Observation, Rollouts
from serveprune.rollouts.window import Counts

STEPS = [{"setWeight": 10}, {"pause": "10s"}, {"setWeight": 50}, {"pause": {}}]
GUARDS = {"max_error_ratio": 0.05, "min_samples": 20, "window": "1m"}


def deployment(**canary: Any) -> DeploymentConfig:
    return DeploymentConfig.model_validate({"canary": {"tier": "int8", "steps": STEPS, "guards": GUARDS, **canary}})


class Rolling:
    """Rollouts over a folder, whose time and observations are handed in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.metrics = Metrics()
        self.deployment = deployment()
        self.rollouts = self.another()

    def another(self, **deployments: DeploymentConfig) -> Rollouts:
        rollouts = Rollouts(self.folder, self.metrics, clock=lambda: self.now)
        rollouts.deploy(deployments or {"minilm": self.deployment})
        return rollouts

    def tick(
        self,
        *,
        seconds: float = 1.0,
        artifact: str | None = "first",
        answered: int = 0,
        errors: int = 0,
        rollouts: Rollouts | None = None,
    ) -> int:
        self.now += seconds
        assert self.deployment.canary is not None
        bounds = side_bounds(self.deployment.canary)
        canary = Counts(errors, LatencyCounts.of([0.01] * answered, bounds))
        stable = Counts(0, LatencyCounts.of([0.01] * answered, bounds))
        observed = {"minilm": Observation("int8", artifact, canary, stable)}
        return (rollouts or self.rollouts).tick(observed)["minilm"].canary_percent

    def run(self, seconds: int, **each: Any) -> list[int]:
        return [self.tick(**each) for _ in range(seconds)]

    def status(self) -> dict[str, Any]:
        return self.rollouts.status("minilm")[0]

    def shown(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"serveprune_rollout_{name}", {"model": "minilm", **labels})

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def rolling(tmp_path: Path) -> Iterator[Rolling]:
    rolling = Rolling(tmp_path)
    yield rolling
    rolling.rollouts.close()


def test_canary_gets_its_steps_as_its_guards_see_enough(rolling: Rolling) -> None:
    assert rolling.run(3, artifact=None) == [0, 0, 0]
    assert rolling.status()["phase"] == "waiting"
    assert rolling.run(15) == [10] * 15
    assert "seen enough" in rolling.status()["reason"]
    assert rolling.tick(answered=30) == 50
    assert rolling.status()["phase"] == "paused"
    assert rolling.shown("canary_weight_ratio") == 0.5
    assert rolling.shown("phase", phase="paused") == 1
    rolling.rollouts.act("minilm", "resume", who="eve")
    assert rolling.tick() == 100
    assert rolling.status()["phase"] == "promoted"
    assert rolling.shown("changes_total", kind="promoted") == 1


def test_breach_takes_the_canary_back_at_once_and_says_why(rolling: Rolling) -> None:
    rolling.run(3)
    assert rolling.tick(answered=60, errors=30) == 0
    status = rolling.status()
    assert status["phase"] == "aborted"
    assert "error ratio 0.333 (30 of 90" in status["reason"]
    assert status["guards"][0]["verdict"] == "breach"
    assert rolling.run(200, answered=60) == [0] * 200
    last = rolling.audit()[-1]
    assert (last["kind"], last["canary_percent"], last["who"]) == ("aborted", 0, None)
    assert rolling.rollouts.changes()[-1] == last


def test_guards_look_once_a_second(rolling: Rolling) -> None:
    rolling.run(2, answered=100)
    assert [rolling.tick(seconds=0.25, errors=each) for each in (1000, 0, 0, 0)] == [10, 10, 10, 0]


@pytest.mark.parametrize("is_killed", [False, True])
def test_rollout_goes_on_at_its_step_after_a_restart(rolling: Rolling, is_killed: bool) -> None:
    rolling.tick(answered=30)
    rolling.run(12)
    assert rolling.status()["step"] == 3
    rolling.rollouts.act("minilm", "pause", who="eve")
    if is_killed:
        # The kernel drops a lock with its holder.
        for canary in rolling.rollouts._canaries.values():
            canary._state.close()
    else:
        rolling.rollouts.close()
    rolling.rollouts = rolling.another()
    assert rolling.tick(artifact=None) == 0
    assert rolling.tick() == 50
    status = rolling.status()
    assert (status["phase"], status["step"], status["reason"]) == ("paused", 3, "paused by eve")


def test_aborted_rollout_stays_aborted_after_a_restart_and_begins_anew_with_another_config(rolling: Rolling) -> None:
    rolling.tick()
    rolling.rollouts.act("minilm", "abort", who="eve", why="it is late")
    rolling.rollouts.close()
    rolling.rollouts = rolling.another()
    assert rolling.run(20, answered=30) == [0] * 20
    assert rolling.status()["reason"] == "aborted by eve: it is late"

    rolling.deployment = deployment(steps=[{"setWeight": 20}, {"pause": "10s"}])
    rolling.rollouts.deploy({"minilm": rolling.deployment})
    assert rolling.tick() == 20


def test_other_artifact_begins_anew(rolling: Rolling) -> None:
    rolling.tick(answered=30)
    assert rolling.run(12)[-1] == 50
    assert rolling.tick(artifact="second") == 10
    assert rolling.status()["artifact"] == "second"
    # What the former did says nothing of it.
    assert rolling.run(12)[-1] == 10


def test_stored_state_that_is_corrupt_gives_the_canary_nothing(rolling: Rolling) -> None:
    rolling.tick(answered=30)
    rolling.rollouts.close()
    (rolling.folder / "rollouts/minilm.json").write_bytes(b"{")
    rolling.rollouts = rolling.another()
    assert rolling.run(20, answered=30) == [0] * 20
    status = rolling.status()
    assert status["phase"] == "aborted"
    assert "set aside as minilm.corrupt-" in status["reason"]
    assert "change the canary's config to begin anew" in status["reason"]


def test_two_servers_on_one_store_agree(rolling: Rolling) -> None:
    other = rolling.another()
    rolling.tick(answered=30)
    assert rolling.tick(rollouts=other) == 10
    assert rolling.run(12)[-1] == 50
    assert rolling.tick(rollouts=other) == 50
    assert "process" in other.status("minilm")[0]["moved_on_by"]
    with pytest.raises(FailedPrecondition, match="moved on by process"):
        other.act("minilm", "abort", who="eve")
    rolling.rollouts.act("minilm", "abort", who="eve")
    assert rolling.tick(rollouts=other) == 0
    rolling.rollouts.close()
    assert rolling.tick(rollouts=other) == 0
    assert other.status("minilm")[0]["moved_on_by"] == "this server"
    other.close()


@pytest.mark.parametrize("is_corrupt", [False, True])
def test_server_that_takes_over_goes_by_what_is_stored_and_not_by_what_it_saw_last(
    rolling: Rolling, is_corrupt: bool
) -> None:
    other = rolling.another()
    rolling.tick(answered=30)
    assert rolling.run(12)[-1] == 50
    assert rolling.tick(rollouts=other) == 50
    rolling.rollouts.act("minilm", "abort", who="eve")
    rolling.rollouts.close()  # before the other one looks again
    if is_corrupt:
        (rolling.folder / "rollouts/minilm.json").write_bytes(b"{")
    assert [rolling.tick(rollouts=other) for _ in range(3)] == [0, 0, 0]
    assert other.status("minilm")[0]["phase"] == "aborted"
    other.close()


def test_asking_how_a_rollout_stands_takes_it_over_from_nobody(rolling: Rolling) -> None:
    other = rolling.another()
    other.status()
    rolling.tick()
    assert rolling.status()["moved_on_by"] == "this server"
    other.close()


def test_rollout_that_cannot_be_stored_gets_nothing_and_holds_up_no_other(rolling: Rolling) -> None:
    rolling.tick()
    (rolling.folder / "rollouts/other.lock").mkdir()
    rollouts = rolling.another(minilm=rolling.deployment, other=rolling.deployment)
    rolling.rollouts.close()
    rolling.now += 1
    assert rolling.deployment.canary is not None
    nothing = Counts(0, LatencyCounts.of((), side_bounds(rolling.deployment.canary)))
    seen = Observation("int8", "first", nothing, nothing)
    weights = rollouts.tick({"minilm": seen, "other": seen})
    assert (weights["minilm"].canary_percent, weights["other"].canary_percent) == (10, 0)
    rollouts.close()


def test_what_was_seen_of_another_tier_begins_no_rollout(rolling: Rolling) -> None:
    assert rolling.deployment.canary is not None
    nothing = Counts(0, LatencyCounts.of((), side_bounds(rolling.deployment.canary)))
    assert rolling.rollouts.tick({"minilm": Observation("lean", "first", nothing, nothing)}) == {}
    assert rolling.status()["phase"] == "waiting"


def test_two_servers_give_a_canary_that_only_one_has_ready_to_that_one_alone(rolling: Rolling) -> None:
    other = rolling.another()
    assert rolling.tick() == 10
    assert rolling.tick(rollouts=other, artifact=None) == 0
    other.close()


def test_requests_of_an_operator_are_refused_where_they_do_not_fit(rolling: Rolling) -> None:
    with pytest.raises(NotFound, match=r"no rollout of a model named 'other'; models with a canary: minilm"):
        rolling.rollouts.act("other", "pause", who="eve")
    with pytest.raises(FailedPrecondition, match="waits for int8 to be built"):
        rolling.rollouts.act("minilm", "promote", who="eve")
    rolling.tick()
    with pytest.raises(FailedPrecondition, match="to resume"):
        rolling.rollouts.act("minilm", "resume", who="eve")
    with pytest.raises(InvalidArgument, match="name of the operator"):
        rolling.rollouts.act("minilm", "pause", who="")
    rolling.rollouts.act("minilm", "promote", who="eve")
    assert rolling.tick() == 100


def test_state_that_could_not_be_stored_is_stored_later(
    rolling: Rolling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rolling.tick()

    def full(rollout: object) -> None:
        raise OSError(28, "No space left on device")

    canary = rolling.rollouts._canaries["minilm"]
    with monkeypatch.context() as patched:
        patched.setattr(canary._state, "write", full)
        rolling.rollouts.act("minilm", "abort", who="eve")
        rolling.run(3)
    assert caplog.text.count("No space left") == 1  # it is tried at each look
    rolling.tick()
    assert json.loads((rolling.folder / "rollouts/minilm.json").read_text())["phase"] == "aborted"


def test_canary_that_leaves_the_config_is_shown_no_more(rolling: Rolling) -> None:
    rolling.tick()
    rolling.rollouts.deploy({"minilm": DeploymentConfig()})
    assert rolling.rollouts.status() == []
    assert rolling.rollouts.tick({}) == {}
    assert rolling.shown("canary_weight_ratio") == 0
