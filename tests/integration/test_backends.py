"""Tiers measured on both backends, built in a child process and served from the store."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from unit.compression.graphs import images
from unit.compression.requests import convolutional_model, int8, tier_request

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.openvino import OpenVinoSession
from serveprune.backends.selection import load_backend
from serveprune.compression.build import build
from serveprune.compression.child import SubprocessBuilder
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.errors import MissingExtra
from serveprune.evaluation.choice import choose
from serveprune.models.registry import Model, Registry
from serveprune.models.repository import VariantRepository
from serveprune.observability.metrics import Metrics
from serveprune.serving.controlplane import ControlPlane
from serveprune.serving.report import VariantReporter

NNCF = ProfileConfig.model_validate({"passes": [{"quantize": {"scheme": "nncf"}}]})


@pytest.fixture
def auto(tmp_path: Path) -> ModelConfig:
    return convolutional_model(tmp_path).model_copy(update={"backend": "auto"})


def run(request: BuildRequest, store: ArtifactStore) -> BuildResult:
    return build(request, store=store, threads=1, threads_of_serving=1, on_progress=lambda progress: None)


def built(result: BuildResult, store: ArtifactStore) -> Artifact:
    assert result.key, result.reasons
    artifact = store.open(result.key)
    assert artifact is not None
    return artifact


@pytest.fixture
def bring_up(store_config: StoreConfig, store: ArtifactStore) -> Iterator[Callable[..., Model]]:
    planes = []

    def start(config: ModelConfig, profile: ProfileConfig) -> Model:
        model = Model("net", config.model_copy(update={"tiers": ("dense", "small")}), default_tier="dense")
        repository = VariantRepository(store, load_backend, threads=1, any_environment=False)
        builder = SubprocessBuilder(store_config, BuildsConfig())
        plane = ControlPlane(
            Registry([model]), repository, builder, VariantReporter(Metrics()), profiles={"small": profile}
        )
        planes.append(plane)
        plane.start()
        assert plane.wait_settled(300)
        return model

    yield start
    for plane in planes:
        plane.stop(timeout_seconds=60)


def test_child_measures_a_tier_on_both_backends_and_the_server_serves_the_faster(
    auto: ModelConfig, store: ArtifactStore, bring_up: Callable[..., Model]
) -> None:
    model = bring_up(auto, NNCF)
    tier = model.variants["small"]
    assert tier.reasons == ()
    assert tier.instance is not None
    assert tier.artifact is not None
    measured = {each.backend: each for each in tier.artifact.manifest.all_measurements}
    assert set(measured) == {"onnxruntime", "openvino"}
    chosen = choose(tier.artifact.manifest.all_measurements, NNCF.gate).passing[0]
    assert (tier.backend, tier.artifact.manifest.measurements) == (chosen.backend, chosen)
    assert isinstance(tier.instance._session, OpenVinoSession) == (tier.backend == "openvino")
    (answers,) = tier.instance.run({"image": images(3)})
    (expected,) = load_backend("onnxruntime").load(tier.artifact.graph).run({"image": images(3)})
    assert np.abs(answers - expected).max() < 0.05 * np.abs(expected).max()
    assert tier.artifact.manifest.environment.keys() >= {"openvino", "nncf"}
    assert model.dense.artifact is not None
    assert "openvino" not in model.dense.artifact.manifest.environment


def test_everything_is_served_by_openvino_when_the_model_says_so(
    auto: ModelConfig, bring_up: Callable[..., Model]
) -> None:
    model = bring_up(auto.model_copy(update={"backend": "openvino"}), int8())
    assert [variant.backend for variant in model.variants.values()] == ["openvino"] * 2
    artifact = model.variants["small"].artifact
    assert artifact is not None
    assert [each.backend for each in artifact.manifest.all_measurements] == ["openvino"]
    instance = model.dense.instance
    assert instance is not None
    assert isinstance(instance._session, OpenVinoSession)


def test_graph_of_another_backend_is_measured_again_and_not_made_again(auto: ModelConfig, store: ArtifactStore) -> None:
    plain = built(run(tier_request(auto.model_copy(update={"backend": "onnxruntime"})), store), store)
    stages: list[str] = []
    result = build(
        tier_request(auto),
        store=store,
        threads=1,
        threads_of_serving=1,
        on_progress=lambda progress: stages.append(progress.stage),
    )
    both = built(result, store)
    assert result.outcome is BuildOutcome.BUILT
    assert both.key != plain.key
    assert both.manifest.files == plain.manifest.files
    assert both.manifest.passes == plain.manifest.passes
    assert "quantize" not in stages
    assert [each.backend for each in both.manifest.all_measurements] == ["onnxruntime", "openvino"]
    assert run(tier_request(auto), store).outcome is BuildOutcome.CACHED


def test_failure_of_openvino_is_recorded_and_the_tier_is_built_all_the_same(
    auto: ModelConfig, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    tier = built(run(tier_request(auto), store), store)
    assert [each.backend for each in tier.manifest.all_measurements] == ["onnxruntime"]
    assert 'pip install "serveprune[openvino]"' in tier.manifest.unmeasured_backends["openvino"]


def test_build_fails_when_the_only_backend_is_missing(
    auto: ModelConfig, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="backend openvino needs the package openvino"):
        run(tier_request(auto.model_copy(update={"backend": "openvino"})), store)
    assert [entry.manifest.kind for entry in store.entries()] == ["dense"]


def test_child_reports_each_backend_while_it_measures(auto: ModelConfig, store_config: StoreConfig) -> None:
    seen: list[BuildProgress] = []
    builder = SubprocessBuilder(store_config, BuildsConfig())
    result = builder.build(tier_request(auto), on_progress=seen.append, cancelled=Event())
    assert result.outcome is BuildOutcome.BUILT, result.reasons
    stages = [progress.stage for progress in seen]
    assert stages.index("measuring quality with onnxruntime") < stages.index("measuring quality with openvino")
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)


def test_manifest_of_both_backends_is_plain_json(auto: ModelConfig, store: ArtifactStore) -> None:
    tier = built(run(tier_request(auto), store), store)
    document = json.loads((tier.folder / "manifest.json").read_text(encoding="utf-8"))
    assert document["measurements"]["backend"] == "onnxruntime"
    assert [each["backend"] for each in document["further_measurements"]] == ["openvino"]
