import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from unit.artifacts.artifact_factory import MEASUREMENTS, dense_manifest, tier_manifest

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import source_recipe, tier_packages, tier_recipe
from serveprune.artifacts.manifest import Measurements
from serveprune.artifacts.store import Artifact, ArtifactStore, StoreEvent, file_records
from serveprune.backends.openvino import OpenVinoSession
from serveprune.backends.selection import load_backend
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.errors import Internal, InvalidArgument
from serveprune.models.registry import Model, Registry
from serveprune.models.repository import VariantRepository
from serveprune.models.variant import VariantState
from serveprune.observability.metrics import Metrics
from serveprune.serving.bring_up import Task
from serveprune.serving.controlplane import ControlPlane
from serveprune.serving.report import VariantReporter

UNEXPECTED = "unexpected failure; see the server's log"


class CopyingBuilder:
    """Makes artifacts of the source graph as it stands, with measurements that are made up."""

    def __init__(self, store: ArtifactStore, profile: ProfileConfig) -> None:
        self.store, self.profile = store, profile
        self.quality = 0.99
        self.further: tuple[Measurements, ...] = ()
        self.built: list[str] = []
        self.failure: BuildResult | None = None
        self.started, self.held, self.cancelled = Event(), Event(), Event()
        self.held.set()
        self.on_built: Callable[[str], object] = lambda tier: None

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        on_progress(BuildProgress("measuring", 0.9))
        self.cancelled = cancelled
        self.started.set()
        assert self.held.wait(30)
        if self.failure is not None:
            return self.failure
        self.built.append(request.tier)
        self.on_built(request.tier)
        with self.store.staging() as folder:
            (folder / "model.onnx").write_bytes(request.model.source.onnx.read_bytes())  # type: ignore[union-attr]
            return BuildResult(BuildOutcome.BUILT, key=self._commit(request, folder).key)

    def _commit(self, request: BuildRequest, folder: Path) -> Artifact:
        recipe, files = source_recipe(request.model), file_records(folder)
        if request.is_dense:
            artifact = self.store.commit(folder, dense_manifest(files, recipe=recipe))
            self.store.record_import(recipe, artifact.key)
            return artifact
        dense = self.store.find_dense(recipe)
        assert dense is not None
        measured = MEASUREMENTS.model_copy(update={"quality": {"cosine": self.quality}})
        recipe = tier_recipe(dense.key, request.model, self.profile, threads=1)
        manifest = tier_manifest(
            files,
            recipe=recipe,
            measurements=measured,
            further_measurements=self.further,
            built_in=environment(tier_packages(request.model, self.profile)),
        )
        return self.store.commit(folder, manifest)


class Plane:
    """A control plane over a real store and backend, whose model `relu` has one compressed tier."""

    def __init__(self, folder: Path, *, backend: str = "onnxruntime", min_quality: float = 0.9) -> None:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
        source = folder / "relu.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), source)
        config = ModelConfig.model_validate(
            {"source": {"onnx": str(source)}, "tiers": ["dense", "int8"], "backend": backend}
        )
        profile = ProfileConfig.model_validate({"passes": [{"quantize": {}}], "gate": {"min_quality": min_quality}})
        self.model = Model("relu", config, default_tier="dense")
        self.metrics = Metrics()
        self.events: list[StoreEvent] = []
        self.store = ArtifactStore(folder / "store", max_bytes=2**30, on_event=self.events.append)
        self.repository = VariantRepository(self.store, load_backend, threads=1, any_environment=False)
        self.builder = CopyingBuilder(self.store, profile)
        self.model_profile = profile
        self.registry = Registry([self.model])
        self.control = ControlPlane(
            self.registry,
            self.repository,
            self.builder,
            VariantReporter(self.metrics),
            profiles={"int8": profile},
        )

    def settle(self) -> None:
        self.control.start()
        assert self.control.wait_settled(60)

    def described(self, tier: str) -> dict[str, Any]:
        described: dict[str, Any] = next(one for one in self.control.tiers("relu")["tiers"] if one["tier"] == tier)
        return described

    def ready(self, tier: str) -> float | None:
        labels = {"model": "relu", "version": "1", "tier": tier}
        return self.metrics.registry.get_sample_value("serveprune_tier_ready", labels)

    @staticmethod
    def failed(reason: str) -> BuildResult:
        return BuildResult(BuildOutcome.FAILED, reasons=(reason,))

    def progress(self, tier: str) -> float | None:
        labels = {"model": "relu", "version": "1", "tier": tier}
        return self.metrics.registry.get_sample_value("serveprune_build_progress_ratio", labels)


@pytest.fixture
def plane(tmp_path: Path) -> Any:
    plane = Plane(tmp_path)
    yield plane
    plane.builder.held.set()
    plane.control.stop(timeout_seconds=60)


def test_everything_is_built_and_ready_when_the_store_is_empty(plane: Plane) -> None:
    plane.settle()
    assert plane.builder.built == ["dense", "int8"]
    assert [variant.state for variant in plane.model.variants.values()] == [VariantState.READY] * 2


def test_progress_ends_when_the_gate_refuses_what_was_built(plane: Plane) -> None:
    plane.builder.quality = 0.5
    plane.settle()
    described = plane.described("int8")
    assert (described["state"], described["progress"]) == ("refused", None)
    assert plane.progress("int8") == 0


def test_unexpected_failure_is_in_the_log_but_not_told_to_clients(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "/home/op/secret/tokenizer.json")

    monkeypatch.setattr(plane.repository, "load_preprocessor", fail)
    with caplog.at_level(logging.ERROR):
        plane.settle()
    assert plane.described("dense")["reasons"] == [UNEXPECTED]
    assert "secret" not in json.dumps(plane.control.tiers("relu"))
    assert "secret" not in str(plane.control.index())
    assert "secret" in caplog.text


def test_dense_is_closed_when_its_preprocessor_cannot_be_loaded(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Internal("the tokenizer is broken")

    monkeypatch.setattr(plane.repository, "load_preprocessor", fail)
    plane.settle()
    assert plane.model.dense.state is VariantState.FAILED
    (artifact,) = plane.store.entries()
    assert not plane.store.is_leased(artifact.key)


def test_artifact_is_built_again_when_it_was_evicted_after_it_was_found(
    plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.settle()
    plane.control.stop(timeout_seconds=60)
    second = Plane(tmp_path)
    find = second.repository.find_tier
    evictions: list[str] = []

    def find_and_evict(*arguments: Any, **options: Any) -> Artifact | None:
        found = find(*arguments, **options)
        if found is not None and not evictions:
            evictions.append(found.key)
            ArtifactStore(second.store.root, max_bytes=1).collect_garbage()  # as another process would
        return found

    monkeypatch.setattr(second.repository, "find_tier", find_and_evict)
    second.settle()
    assert evictions
    assert second.builder.built == ["int8"]
    assert second.model.variants["int8"].state is VariantState.READY
    second.control.stop(timeout_seconds=60)


def test_log_of_a_failed_build_is_told_by_its_name_in_the_store(plane: Plane, tmp_path: Path) -> None:
    log = plane.store.failure_log("relu-dense")
    plane.builder.failure = BuildResult(BuildOutcome.FAILED, reasons=("it crashed",), log=log)
    plane.settle()
    assert plane.described("dense")["log"] == str(log.relative_to(plane.store.root))
    assert str(tmp_path) not in json.dumps(plane.control.tiers("relu"))


def test_tier_is_never_the_dense_artifact(plane: Plane) -> None:
    with pytest.raises(Internal, match="int8 was looked up before dense"):
        plane.control._bring_up._lookup(Task(plane.model, "int8", 0, plane.model.config, None))


def test_stop_keeps_its_patience_when_a_build_does_not_end(plane: Plane) -> None:
    plane.builder.held.clear()
    plane.control.start()
    assert plane.builder.started.wait(30)
    assert not plane.control.stop(timeout_seconds=0.01)
    plane.builder.held.set()
    assert plane.control.stop(timeout_seconds=60)


def test_model_with_an_empty_tier_is_refused_like_everywhere(plane: Plane) -> None:
    with pytest.raises(InvalidArgument, match="model name 'relu@'"):
        plane.control.tiers("relu@")


def test_series_of_builds_are_there_from_the_start(plane: Plane) -> None:
    labels = {"model": "relu", "version": "1", "tier": "int8"}
    value = plane.metrics.registry.get_sample_value
    assert value("serveprune_build_duration_seconds_count", labels) == 0
    for outcome in BuildOutcome:
        assert value("serveprune_builds_total", {**labels, "outcome": outcome}) == 0


FASTER_ON_OPENVINO = MEASUREMENTS.model_copy(
    update={
        "backend": "openvino",
        "quality": {"cosine": 0.95},
        "latency": MEASUREMENTS.latency.model_copy(update={"tier_ms": 2.5, "ratio": 0.25}),
    }
)


def settled(plane: Plane) -> Plane:
    plane.builder.further = (FASTER_ON_OPENVINO,)
    plane.settle()
    plane.control.stop(timeout_seconds=60)
    return plane


def test_tier_is_served_by_the_faster_backend_that_passes_its_gate(tmp_path: Path) -> None:
    plane = settled(Plane(tmp_path, backend="auto"))
    assert [variant.backend for variant in plane.model.variants.values()] == ["onnxruntime", "openvino"]
    described = plane.described("int8")
    assert (described["backend"], described["speedup"], described["quality"]) == ("openvino", 4.0, {"cosine": 0.95})
    assert {name: figures["speedup"] for name, figures in described["backends"].items()} == {
        "onnxruntime": 2.0,
        "openvino": 4.0,
    }
    assert described["built_here"]


def test_backend_changes_without_a_build_when_the_gate_does(tmp_path: Path) -> None:
    settled(Plane(tmp_path, backend="auto"))
    strict = settled(Plane(tmp_path, backend="auto", min_quality=0.97))
    assert strict.builder.built == []
    assert strict.model.variants["int8"].backend == "onnxruntime"
    assert strict.described("int8")["speedup"] == 2.0


def test_tier_is_served_by_the_next_backend_when_the_first_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING):
        plane = settled(Plane(tmp_path, backend="auto"))
    assert plane.model.variants["int8"].backend == "onnxruntime"
    assert plane.described("int8")["speedup"] == 2.0
    assert "int8: not served by openvino: backend openvino needs the package openvino" in caplog.text


def test_dense_is_served_by_openvino_when_the_model_says_so(tmp_path: Path) -> None:
    plane = Plane(tmp_path, backend="openvino")
    plane.settle()
    assert plane.model.dense.backend == "openvino"
    assert plane.model.dense.instance is not None
    assert isinstance(plane.model.dense.instance._session, OpenVinoSession)
    plane.control.stop(timeout_seconds=60)


def test_dense_fails_with_the_extra_to_install_when_its_backend_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    plane = Plane(tmp_path, backend="openvino")
    plane.settle()
    assert plane.model.dense.state is VariantState.FAILED
    assert 'pip install "serveprune[openvino]"' in plane.model.dense.reasons[0]
    plane.control.stop(timeout_seconds=60)
