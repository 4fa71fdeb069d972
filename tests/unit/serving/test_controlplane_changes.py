"""What becomes of what serves when the config changes."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from unit.serving.test_controlplane import Plane

from serveprune.config.changes import config_changes
from serveprune.config.model import ModelConfig, ModelEntry
from serveprune.config.profile import ProfileConfig
from serveprune.config.root import ServePruneConfig
from serveprune.models.instance import Instance, InstanceRetired
from serveprune.models.registry import Model
from serveprune.models.variant import VariantState


class Changing(Plane):
    """A plane whose config changes; what is taken out is retired at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.served = whole(self.model.config, {"int8": self.builder.profile})
        self.control._grace_seconds = 0.0

    def config(self, **changes: Any) -> ModelConfig:
        return ModelConfig.model_validate(self.model.config.model_dump(mode="json") | changes)

    def apply(self, config: ModelConfig | None, *, default_tier: str = "dense", **profiles: ProfileConfig) -> None:
        before, self.served = self.served, whole(config, {"int8": self.builder.profile, **profiles})
        changes = config_changes(before, self.served)
        models = [Model(name, one, default_tier=default_tier) for (name, _), one in self.served.served().items()]
        self.control.apply(models, profiles=self.served.profiles, touched=changes.touched)

    def settle_again(self) -> None:
        assert self.control.wait_settled(60)

    def serving(self, tier: str = "int8") -> Instance:
        instance = self.registry.get("relu").variants[tier].instance
        assert instance is not None
        return instance

    def profile(self, **gate: float) -> ProfileConfig:
        """Make another profile the one that is built, with a pass that the first does not have."""
        passes = [{"quantize": {"scheme": "dynamic"}}]
        self.builder.profile = ProfileConfig.model_validate({"passes": passes, "gate": gate or {"min_quality": 0.5}})
        return self.builder.profile


def whole(model: ModelConfig | None, profiles: Mapping[str, ProfileConfig]) -> ServePruneConfig:
    return ServePruneConfig.model_construct(
        profiles=dict(profiles), models={} if model is None else {"relu": entry(model)}, deployments={}
    )


def entry(model: ModelConfig) -> ModelEntry:
    return ModelEntry.model_validate(model.model_dump())


def is_retired(instance: Instance) -> bool:
    try:
        instance.acquire()
    except InstanceRetired:
        return True
    instance.release()
    return False


def other_graph(folder: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "neg", values[:1], values[1:])
    file = folder / "neg.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


@pytest.fixture
def plane(tmp_path: Path) -> Any:
    plane = Changing(tmp_path)
    plane.settle()
    yield plane
    plane.builder.held.set()
    plane.control.stop(timeout_seconds=60)


def test_same_config_changes_nothing(plane: Changing) -> None:
    before = dict(plane.model.variants)
    plane.apply(plane.config())
    plane.settle_again()
    assert dict(plane.model.variants) == before
    assert plane.builder.built == ["dense", "int8"]


def test_changed_profile_serves_only_once_it_is_built_and_the_former_serves_until_then(plane: Changing) -> None:
    former, profile = plane.serving(), plane.profile()
    plane.builder.started.clear()
    plane.builder.held.clear()
    plane.apply(plane.config(), int8=profile)
    assert plane.builder.started.wait(30)

    described = plane.described("int8")
    assert (described["state"], described["renewal"]["state"]) == ("ready", "building")
    assert plane.serving() is former
    assert plane.ready("int8") == 1
    plane.builder.held.set()
    plane.settle_again()
    assert plane.serving() is not former
    assert plane.described("int8")["renewal"] is None
    assert is_retired(former)


@pytest.mark.parametrize("cause", ["refused", "failed"])
def test_former_goes_on_serving_when_the_changed_profile_does_not_make_it(plane: Changing, cause: str) -> None:
    former = plane.serving()
    profile = plane.profile(min_quality=0.999)
    if cause == "failed":
        plane.builder.failure = plane.failed("no memory")
    plane.apply(plane.config(), int8=profile)
    plane.settle_again()

    described = plane.described("int8")
    assert (described["state"], described["renewal"]["state"]) == ("ready", cause)
    assert described["renewal"]["reasons"]
    assert plane.serving() is former
    assert not is_retired(former)


def test_stricter_gate_takes_what_serves_out_without_a_build(plane: Changing) -> None:
    former = plane.serving()
    strict = ProfileConfig.model_validate({"passes": [{"quantize": {}}], "gate": {"min_quality": 0.999}})
    plane.apply(plane.config(), int8=strict)
    plane.settle_again()

    assert plane.described("int8")["state"] == "refused"
    assert plane.model.variants["int8"].instance is None
    assert is_retired(former)
    assert plane.builder.built == ["dense", "int8"]


def test_tier_is_added_and_removed_while_the_others_serve(plane: Changing) -> None:
    dense, int8 = plane.serving("dense"), plane.serving()
    plane.apply(plane.config(tiers=["dense", "lean"]), lean=plane.builder.profile)
    assert is_retired_soon(int8)
    plane.settle_again()

    assert list(plane.model.variants) == ["dense", "lean"]
    assert plane.serving("dense") is dense
    assert plane.serving("lean").identity == ("relu", "1", "lean")


def test_tier_that_failed_is_tried_again_when_its_profile_changes(plane: Changing) -> None:
    plane.builder.failure = plane.failed("no memory")
    config = plane.config(tiers=["dense", "int8", "lean"])
    plane.apply(config, int8=plane.model_profile, lean=plane.profile())
    plane.settle_again()
    assert plane.described("lean")["state"] == "failed"

    plane.builder.failure = None
    plane.apply(config, int8=plane.model_profile, lean=plane.profile(min_quality=0.6))
    plane.settle_again()
    assert plane.described("lean")["state"] == "ready"


@pytest.mark.parametrize("tier", ["dense", "int8"])
def test_tiers_that_failed_are_tried_again_by_the_same_config(tmp_path: Path, tier: str) -> None:
    plane, full = Changing(tmp_path), "the disk is full"
    plane.builder.failure = plane.failed(full) if tier == "dense" else None
    plane.builder.on_built = lambda _: setattr(plane.builder, "failure", plane.failed(full))
    plane.settle()
    assert plane.described("int8")["state"] == "failed"
    assert plane.ready("dense") == (tier == "int8")
    present = plane.model.variants["dense"].instance

    plane.builder.failure, plane.builder.on_built = None, lambda _: None
    plane.apply(plane.config())
    plane.settle_again()
    assert [plane.described(each)["state"] for each in ("dense", "int8")] == ["ready", "ready"]
    assert present in (None, plane.serving("dense"))
    plane.control.stop(timeout_seconds=60)


def test_renewal_that_failed_is_tried_again_by_the_same_config(plane: Changing) -> None:
    former, profile = plane.serving(), plane.profile()
    plane.builder.failure = plane.failed("no memory")
    plane.apply(plane.config(), int8=profile)
    plane.settle_again()
    assert plane.described("int8")["renewal"]["state"] == "failed"

    plane.builder.failure = None
    plane.apply(plane.config(), int8=profile)
    plane.settle_again()
    assert plane.described("int8")["renewal"] is None
    assert is_retired(former)


def test_changed_batching_loads_the_same_artifacts_anew(plane: Changing) -> None:
    former, artifact = plane.serving(), plane.model.variants["int8"].artifact
    plane.apply(plane.config(max_batch_size=2))
    plane.settle_again()

    assert plane.serving().max_batch_size == 2
    assert plane.model.variants["int8"].artifact == artifact
    assert is_retired(former)
    assert plane.builder.built == ["dense", "int8"]


def test_other_graph_takes_over_with_all_its_tiers_at_once(plane: Changing) -> None:
    former, seen = plane.model, set[tuple[int, int]]()
    plane.builder.on_built = lambda tier: seen.add((id(plane.registry.get("relu")), id(former)))
    plane.apply(plane.config(source={"onnx": str(other_graph(plane.folder))}, version="2"))
    assert plane.control.tiers("relu")["successor"]["version"] == "2"
    plane.settle_again()

    model = plane.registry.get("relu", version="2")
    assert seen == {(id(former), id(former))}
    assert [variant.state for variant in model.variants.values()] == [VariantState.READY] * 2
    x = np.ones((1, 4), np.float32)
    assert plane.serving("int8").run({"x": x})[0].tolist() == (-x).tolist()
    assert plane.control.tiers("relu")["successor"] is None
    assert plane.ready("int8") is None
    assert is_retired_soon(former.variants["int8"].instance)


def test_model_goes_on_serving_when_the_other_graph_cannot_be_imported(plane: Changing) -> None:
    plane.builder.failure = plane.failed("it is no graph")
    plane.apply(plane.config(source={"onnx": str(other_graph(plane.folder))}))
    plane.settle_again()

    assert plane.registry.get("relu") is plane.model
    successor = plane.control.tiers("relu")["successor"]
    assert successor["tiers"][0]["reasons"] == ["it is no graph"]
    assert plane.ready("int8") == 1


def test_going_back_ends_the_way_to_another_graph(plane: Changing) -> None:
    plane.builder.started.clear()
    plane.builder.held.clear()
    before = plane.config()
    plane.apply(plane.config(source={"onnx": str(other_graph(plane.folder))}))
    assert plane.builder.started.wait(30)
    plane.apply(before)
    plane.builder.held.set()
    plane.settle_again()

    assert plane.registry.get("relu") is plane.model
    assert plane.control.tiers("relu")["successor"] is None


def test_model_that_never_served_is_replaced_at_once(tmp_path: Path) -> None:
    plane = Changing(tmp_path)
    plane.builder.failure = plane.failed("it is no graph")
    plane.settle()
    plane.builder.failure = None
    plane.apply(plane.config(source={"onnx": str(other_graph(tmp_path))}))
    assert plane.registry.get("relu") is not plane.model
    plane.settle_again()
    assert plane.ready("int8") == 1
    plane.control.stop(timeout_seconds=60)


def test_build_that_nobody_waits_for_any_more_is_ended(plane: Changing) -> None:
    plane.builder.started.clear()
    plane.builder.held.clear()
    plane.apply(plane.config(), int8=plane.profile())
    assert plane.builder.started.wait(30)
    cancelled = plane.builder.cancelled
    assert not cancelled.is_set()
    plane.apply(plane.config(tiers=["dense"]))
    assert cancelled.is_set()
    plane.builder.held.set()
    plane.settle_again()
    assert list(plane.model.variants) == ["dense"]


def test_build_goes_on_when_something_else_changes(plane: Changing) -> None:
    plane.builder.started.clear()
    plane.builder.held.clear()
    plane.apply(plane.config(), int8=plane.profile())
    assert plane.builder.started.wait(30)
    cancelled = plane.builder.cancelled
    plane.apply(plane.config(), default_tier="int8", int8=plane.builder.profile)
    assert not cancelled.is_set()
    plane.builder.held.set()
    plane.settle_again()
    assert plane.model.default_tier == "int8"
    assert plane.builder.built == ["dense", "int8", "int8"]


def test_removed_model_is_gone_and_its_gauges_with_it(plane: Changing) -> None:
    former = plane.serving()
    plane.apply(None)
    assert plane.registry.models() == []
    assert is_retired_soon(former)
    assert plane.ready("int8") is None


def is_retired_soon(instance: Instance | None) -> bool:
    assert instance is not None
    return eventually(lambda: is_retired(instance))


def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_what_was_loaded_for_a_model_that_is_gone_by_then_is_let_go(
    plane: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Instance] = []
    load = plane.repository.load

    def load_and_remove(*arguments: Any, **options: Any) -> Instance:
        loaded.append(load(*arguments, **options))
        monkeypatch.undo()
        plane.apply(None)
        return loaded[0]

    monkeypatch.setattr(plane.repository, "load", load_and_remove)
    plane.apply(plane.config(max_batch_size=2))
    plane.settle_again()
    assert eventually(lambda: bool(loaded))
    assert is_retired_soon(loaded[0])
