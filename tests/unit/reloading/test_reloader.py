import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig
from serveprune.errors import Code, FailedPrecondition, Internal, Unavailable
from serveprune.observability.metrics import Metrics
from serveprune.reloading.config_file import ConfigFile
from serveprune.reloading.reloader import Reloader, ReloadOutcome

SUCCESSFUL = "serveprune_config_last_reload_successful"
SECONDS = "serveprune_config_last_reload_success_timestamp_seconds"


class Reloading:
    """A reloader over a real file; what it applies is kept."""

    def __init__(self, folder: Path) -> None:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "relu.onnx"
        )
        self.path = folder / "serveprune.yaml"
        self.models: dict[str, Any] = {"relu": {"source": {"onnx": "relu.onnx"}}}
        self.write()
        self.applied: list[ServePruneConfig] = []
        self.failure: Exception | None = None
        self.was_applied = threading.Event()
        self.asked = False
        self.now = 100.0
        self.metrics = Metrics()
        file = ConfigFile(self.path)
        self.reloader = Reloader(
            file,
            load_config(self.path),
            read=lambda: load_config(self.path),
            apply=self.apply,
            metrics=self.metrics,
            is_asked=self.take_asked,
            clock=lambda: self.now,
        )

    def write(self, **sections: Any) -> None:
        self.path.write_text(yaml.safe_dump({"models": self.models, **sections}))

    def apply(self, config: ServePruneConfig) -> None:
        if self.failure is not None:
            raise self.failure
        self.applied.append(config)
        self.was_applied.set()

    def take_asked(self) -> bool:
        asked, self.asked = self.asked, False
        return asked

    def shown(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


@pytest.fixture
def reloading(tmp_path: Path) -> Iterator[Reloading]:
    reloading = Reloading(tmp_path)
    yield reloading
    reloading.reloader.stop()


def test_config_at_start_counts_as_good(reloading: Reloading) -> None:
    assert (reloading.shown(SUCCESSFUL), reloading.shown(SECONDS)) == (1, 100)


def test_changed_config_is_applied_and_said_to_be(reloading: Reloading, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    reloading.models["relu"]["max_batch_size"] = 3
    reloading.write()
    reloading.now = 200.0
    done = reloading.reloader.reload()

    assert done.outcome is ReloadOutcome.APPLIED
    assert [config.models["relu"].max_batch_size for config in reloading.applied] == [3]
    assert reloading.reloader.config is reloading.applied[0]
    assert (reloading.shown(SUCCESSFUL), reloading.shown(SECONDS)) == (1, 200)
    assert "models.relu.max_batch_size: 32 -> 3" in caplog.text


def test_config_that_says_the_same_is_applied_for_the_sake_of_what_failed(reloading: Reloading) -> None:
    reloading.write(profiles={})
    assert reloading.reloader.reload().outcome is ReloadOutcome.UNCHANGED
    assert reloading.applied == [reloading.reloader.config]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"models": {}}, "models"),
        ({"models": {"relu": {"source": {"onnx": "none.onnx"}}}}, "none.onnx"),
        ({"server": {"executors": 7}}, "7: expected as it was while the server runs; restart"),
        (
            {"profiles": {"int8": {"passes": [{"quantize": {}}]}}, "models": {"relu": {"source": {"onnx": "relu.onnx"},
             "tiers": ["dense", "int8"]}}},
            "models.relu.evaluation: expected a set to judge int8 on",
        ),
    ],
)  # fmt: skip
def test_config_with_anything_wrong_is_rejected_whole(
    reloading: Reloading, sections: dict[str, Any], problem: str
) -> None:
    before = reloading.reloader.config
    reloading.now = 200.0
    reloading.write(**sections)
    done = reloading.reloader.reload()

    assert done.outcome is ReloadOutcome.REJECTED
    assert any(problem in one for one in done.problems), done.problems
    assert reloading.applied == []
    assert reloading.reloader.config is before
    assert reloading.reloader.last is done
    assert (reloading.shown(SUCCESSFUL), reloading.shown(SECONDS)) == (0, 100)

    reloading.write()
    assert reloading.reloader.reload().outcome is ReloadOutcome.UNCHANGED
    assert reloading.shown(SUCCESSFUL) == 1


@pytest.mark.parametrize("failure", [Internal("no more threads"), RuntimeError("secret")])
def test_config_that_cannot_be_applied_is_tried_again_when_asked(reloading: Reloading, failure: Exception) -> None:
    reloading.models["relu"]["max_batch_size"] = 3
    reloading.write()
    reloading.failure = failure
    done = reloading.reloader.reload()
    assert done.outcome is ReloadOutcome.REJECTED
    assert done.problems in (("no more threads",), ("unexpected failure; see the server's log",))
    reloading.failure = None
    assert reloading.reloader.reload().outcome is ReloadOutcome.APPLIED


def test_watched_file_is_applied_when_it_changes(reloading: Reloading) -> None:
    reloading.reloader.start()
    reloading.models["relu"]["max_batch_size"] = 3
    reloading.write()
    assert reloading.was_applied.wait(20)


def test_file_is_read_when_asked_though_it_looks_as_before(reloading: Reloading) -> None:
    reloading.failure = Internal("not now")
    reloading.models["relu"]["max_batch_size"] = 3
    reloading.write()
    reloading.reloader.reload()
    reloading.failure = None
    reloading.reloader.start()
    reloading.asked = True
    assert reloading.was_applied.wait(20)


@pytest.mark.parametrize(
    ("models", "sections", "failure", "code"),
    [
        ({"relu": {"source": {"onnx": "gone.onnx"}}}, {}, None, Code.INVALID_ARGUMENT),
        (None, {"server": {"executors": 7}}, None, Code.FAILED_PRECONDITION),
        (None, {"deployments": {"relu": {"priority": 3}}}, FailedPrecondition("no"), Code.FAILED_PRECONDITION),
        (None, {"deployments": {"relu": {"priority": 3}}}, ZeroDivisionError(), Code.INTERNAL),
    ],
    ids=["invalid", "needs a restart", "refused", "unexpected"],
)
def test_rejection_says_of_what_kind_it_is(
    reloading: Reloading,
    models: dict[str, Any] | None,
    sections: dict[str, Any],
    failure: Exception | None,
    code: Code,
) -> None:
    reloading.models = models or reloading.models
    reloading.failure = failure
    reloading.write(**sections)
    assert reloading.reloader.reload().code is code


def test_nothing_is_applied_once_it_was_stopped_and_what_is_under_way_is_awaited(reloading: Reloading) -> None:
    may_end = threading.Event()
    order: list[str] = []

    def apply(config: ServePruneConfig) -> None:
        reloading.was_applied.set()
        assert may_end.wait(20)
        order.append("applied")

    reloader = Reloader(
        ConfigFile(reloading.path),
        load_config(reloading.path),
        read=lambda: load_config(reloading.path),
        apply=apply,
        metrics=Metrics(),
    )
    reloading.write(deployments={"relu": {"priority": 3}})
    asking = threading.Thread(target=reloader.reload)
    asking.start()
    assert reloading.was_applied.wait(20)

    def stop() -> None:
        reloader.stop()
        order.append("stopped")

    stopping = threading.Thread(target=stop)
    stopping.start()
    may_end.set()
    stopping.join()
    asking.join()

    assert order == ["applied", "stopped"]
    with pytest.raises(Unavailable):
        reloader.reload()
