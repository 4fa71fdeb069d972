"""Loads and unloads against a server that stands as the test says."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from serveprune.config.root import ServePruneConfig
from serveprune.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from serveprune.repository.model_repository import ModelRepository, Processes, is_gone, outcome
from serveprune.server import Contents

READY, FAILED, BUILDING = "ready", "failed", "building"


def standing(name: str, state: str, *, version: str = "1", successor: str | None = None) -> dict[str, Any]:
    def described(state: str) -> dict[str, Any]:
        tier = {
            "tier": "dense",
            "state": state,
            "reasons": ["it is broken"] if state == FAILED else [],
            "renewal": None,
        }
        return {"name": name, "version": version, "tiers": [tier]}

    return {**described(state), "successor": described(successor) if successor else None}


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ([], None),
        ([standing("m", BUILDING)], None),
        ([standing("m", READY)], ""),
        ([standing("m", FAILED)], "it is broken"),
        ([standing("m", READY, successor=BUILDING)], None),
        ([standing("m", READY, successor=READY)], None),
        ([standing("m", READY, successor=FAILED)], "it is broken"),
        ([standing("other", READY)], None),
    ],
)
def test_outcome_is_that_of_the_dense_tier(standings: list[dict[str, Any]], expected: str | None) -> None:
    assert outcome(standings, "m", ["1"]) == expected


def test_outcome_of_several_versions_is_that_of_the_last_or_of_one_that_fails() -> None:
    one, two = standing("m", READY), standing("m", BUILDING, version="2")
    assert outcome([one, two], "m", ["1", "2"]) is None
    assert outcome([one, standing("m", FAILED, version="2")], "m", ["1", "2"]) == "it is broken"
    assert outcome([one, standing("m", READY, version="2")], "m", ["1", "2"]) == ""


def test_model_is_gone_when_every_process_has_said_so() -> None:
    here, elsewhere = [standing("m", READY)], [standing("other", READY)]
    assert is_gone([elsewhere, elsewhere], "m")
    assert is_gone([[]], "m")
    assert not is_gone([elsewhere, here], "m")
    assert not is_gone([elsewhere, None], "m")


class Stage:
    """A server that serves whatever it is told, in the state that the test sets.

    Attributes:
        state: Of the dense tier of every model.
        applied: Names of the models of each config that was applied.
    """

    def __init__(self) -> None:
        self.state = READY
        self.applied: list[list[str]] = []
        self.contents: list[Contents] = []
        self._names: list[str] = []

    def apply(self, config: ServePruneConfig, *, contents: Contents) -> None:
        self._names = list(config.models)
        self.applied.append(self._names)
        self.contents.append(contents)

    def wait_for(self, condition: Callable[[Processes], bool], timeout_seconds: float) -> bool:
        deadline = time.monotonic() + min(timeout_seconds, 0.05)
        while not condition([[standing(name, self.state) for name in self._names]] * 2):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stage = Stage()
        self.repository = self.made()
        self.repository.attach(self.stage)

    def made(self, *, mode: str = "explicit", **settings: Any) -> ModelRepository:
        (self.folder / "models").mkdir(exist_ok=True)
        return ModelRepository(self.config(repository={"mode": mode, "path": self.folder / "models", **settings}))

    def config(self, **sections: Any) -> ServePruneConfig:
        self.write("fixed", place=self.folder)
        fixed = {"fixed": {"source": {"onnx": self.folder / "fixed" / "model.onnx"}}}
        profiles: dict[str, Any] = {"int8": {"passes": [{"quantize": {}}]}}
        return ServePruneConfig.model_validate({"models": fixed, "profiles": profiles, **sections})

    def write(self, name: str, *, place: Path | None = None, factor: float = 1.0) -> None:
        values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", 4]) for each in "xy"]
        constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "factor"], ["y"])], "g", values[:1], values[1:], [constant]
        )
        folder = (place or self.folder / "models") / name
        folder.mkdir(exist_ok=True)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, folder / ".new")
        (folder / ".new").replace(folder / "model.onnx")


def done(future: "Future[None]") -> None:
    future.result(60)


@pytest.fixture
def made(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_model_is_loaded_and_unloaded(made: Repository) -> None:
    made.write("m")
    assert made.repository.unloaded() == {"m": "not loaded"}
    done(made.repository.load("m"))
    assert made.stage.applied == [["fixed", "m"]]
    assert list(made.stage.contents[0]) == [("m", "1")]
    assert made.repository.unloaded() == {}
    done(made.repository.unload("m"))
    assert made.stage.applied[-1] == ["fixed"]
    assert made.repository.unloaded() == {"m": "not loaded"}


def test_load_that_changes_nothing_applies_nothing(made: Repository) -> None:
    made.write("m")
    done(made.repository.load("m"))
    done(made.repository.load("m"))
    assert len(made.stage.applied) == 1


def test_load_of_files_that_changed_under_their_names_has_another_content(made: Repository) -> None:
    made.write("m")
    done(made.repository.load("m"))
    made.write("m", factor=2)
    done(made.repository.load("m"))
    assert made.stage.contents[0] != made.stage.contents[1]


def test_load_that_fails_leaves_nothing_behind_and_says_why(made: Repository) -> None:
    made.write("m")
    made.stage.state = FAILED
    with pytest.raises(FailedPrecondition, match=r"model m cannot be loaded: it is broken$"):
        done(made.repository.load("m"))
    assert made.stage.applied == [["fixed", "m"], ["fixed"]]
    assert "it is broken" in made.repository.unloaded()["m"]


def test_load_that_fails_leaves_what_was_loaded_before(made: Repository) -> None:
    made.write("m")
    done(made.repository.load("m"))
    made.write("m", factor=2)
    made.stage.state = FAILED
    with pytest.raises(FailedPrecondition, match="it is broken; what was loaded before goes on serving"):
        done(made.repository.load("m"))
    assert made.stage.applied[-1] == ["fixed", "m"]
    assert made.stage.contents[-1] == made.stage.contents[0]


def test_loads_at_once_share_one_outcome(made: Repository) -> None:
    made.write("m")
    made.stage.state = BUILDING
    first, second = made.repository.load("m"), made.repository.load("m")
    assert first is second
    assert not first.cancel()
    made.stage.state = READY
    done(first)
    assert len(made.stage.applied) == 1


def test_unload_ends_the_load_that_is_on_its_way(made: Repository) -> None:
    made.write("m")
    made.stage.state = BUILDING
    loading = made.repository.load("m")
    assert wait_until(lambda: made.stage.applied != [])
    done(made.repository.unload("m"))
    with pytest.raises(FailedPrecondition, match="was unloaded before it was ready"):
        done(loading)
    assert made.stage.applied == [["fixed", "m"], ["fixed"]]


def test_load_ends_when_the_server_stops(made: Repository) -> None:
    made.write("m")
    made.stage.state = BUILDING
    loading = made.repository.load("m")
    made.repository.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        done(loading)
    with pytest.raises(Unavailable, match="shutting down"):
        made.repository.load("m")


def test_models_that_are_not_there_or_not_of_the_repository_are_refused(made: Repository) -> None:
    for change, name, error, said in (
        (made.repository.load, "nobody", NotFound, "no folder 'nobody'"),
        (
            made.repository.unload,
            "nobody",
            NotFound,
            "no model named 'nobody' is loaded from the repository; loaded: none",
        ),
        (made.repository.load, "fixed", FailedPrecondition, "model fixed is one of the config file"),
        (made.repository.unload, "fixed", FailedPrecondition, "model fixed is one of the config file"),
        (made.repository.load, "../models", InvalidArgument, "expected the name of a model"),
        (made.repository.unload, "", InvalidArgument, "expected the name of a model"),
    ):
        with pytest.raises(error, match=said):
            done(change(name))
    assert made.stage.applied == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("tiers: [lean]", "models.m.tiers: expected dense or the name of a profile of the config file, got 'lean'; "),
        ("tiers: [int8]", "models.m.evaluation: expected a set to judge int8 on"),
        ("evaluation: {file: none.npz}", "evaluation.file: expected a file, but .*none.npz does not exist"),
    ],
)
def test_model_that_does_not_go_with_the_config_file_is_refused(made: Repository, entry: str, said: str) -> None:
    made.write("m")
    (made.folder / "models" / "m" / "serveprune.yaml").write_text(entry)
    with pytest.raises(ConfigError, match=said):
        done(made.repository.load("m"))
    assert made.stage.applied == []


@pytest.mark.parametrize(
    ("deployment", "key"),
    [
        ({"default_tier": "int8"}, "default_tier"),
        ({"split": {"dense": 9, "int8": 1}}, "split.int8"),
        ({"canary": {"tier": "int8", "steps": [{"setWeight": 5}]}}, "canary.tier"),
        ({"stable": "int8", "canary": {"tier": "dense", "steps": [{"setWeight": 5}]}}, "stable"),
        ({"shadow": {"tier": "int8"}}, "shadow.tier"),
    ],
)
def test_model_without_a_tier_that_its_deployment_names_is_refused(
    made: Repository, deployment: dict[str, Any], key: str
) -> None:
    made.write("m")
    repository = made.made()
    repository.attach(made.stage)
    repository.apply(made.config(deployments={"m": deployment}, repository=repository.settings))
    said = f"deployments.m.{key}: expected a tier of m, got 'int8'; tiers: dense"
    with pytest.raises(ConfigError, match=re.escape(said)):
        done(repository.load("m"))


def test_changed_file_is_served_beside_what_is_loaded_unless_they_clash(made: Repository) -> None:
    made.write("m")
    done(made.repository.load("m"))
    settings = made.repository._settings
    more = made.config(models={name: made.config().models["fixed"] for name in ("fixed", "more")}, repository=settings)
    made.repository.apply(more)
    assert made.stage.applied[-1] == ["fixed", "more", "m"]
    clash = made.config(models={name: made.config().models["fixed"] for name in ("fixed", "m")}, repository=settings)
    with pytest.raises(FailedPrecondition, match="model m is one of the config file"):
        made.repository.apply(clash)
    assert made.stage.applied[-1] == ["fixed", "more", "m"]
    with pytest.raises(ConfigError, match=r"deployments.m.default_tier: expected a tier of m, got 'int8'.*repository"):
        made.repository.apply(made.config(deployments={"m": {"default_tier": "int8"}}, repository=settings))


def test_deployment_of_a_model_that_is_nowhere_is_told(made: Repository, caplog: pytest.LogCaptureFixture) -> None:
    made.write("minilm")
    deployments = {name: {"default_tier": "dense"} for name in ("fixed", "minilm", "minlm")}
    made.repository.apply(made.config(deployments=deployments, repository=made.repository.settings))
    said = "deployments.minlm: neither the config file nor the model repository has a model of this name"
    assert caplog.messages == [f"{said}; did you mean `minilm`?"]


def test_models_of_the_start_are_served_from_the_start_or_the_start_is_refused(made: Repository) -> None:
    made.write("m")
    first = made.made(load_at_start=["m"])
    assert list(first.config.models) == ["fixed", "m"]
    assert list(first.contents) == [("m", "1")]
    with pytest.raises(ConfigError, match=r"repository.load_at_start: the model repository has no folder 'nobody'"):
        made.made(load_at_start=["m", "nobody"])


def test_nothing_is_loaded_by_request_when_the_folder_is_followed(made: Repository) -> None:
    polling = made.made(mode="poll")
    with pytest.raises(FailedPrecondition, match=r"only with repository\.mode explicit"):
        polling.load("m")


def test_many_callers_leave_the_server_in_a_state_that_one_of_them_wanted(made: Repository) -> None:
    for name in ("a", "b"):
        made.write(name)
    outcomes: Mapping[str, list[BaseException | None]] = {"a": [], "b": []}

    def change(name: str, turn: int) -> None:
        act = made.repository.load if turn % 2 else made.repository.unload
        outcomes[name].append(act(name).exception(60))

    threads = [threading.Thread(target=change, args=("ab"[turn % 2], turn // 2)) for turn in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(isinstance(error, NotFound | FailedPrecondition | None) for each in outcomes.values() for error in each)
    for name in ("a", "b"):
        done(made.repository.load(name))
    assert sorted(made.stage.applied[-1]) == ["a", "b", "fixed"]
    assert made.repository._flights == {}


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()
