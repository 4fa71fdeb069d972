"""The demo's image classifier, pruned hard, learning from its dense self: through a build and through the command."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from typer.testing import CliRunner
from unit.compression.requests import store_at

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest
from serveprune.artifacts.manifest import GRAPH_FILE, Manifest
from serveprune.cli.app import app
from serveprune.compression.build import build
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "serveprune" / "demo"

FASHION = {
    "source": {"onnx": DEMO / "fashion.onnx"},
    "calibration": {"file": DEMO / "fashion_calibration.npz", "samples": 256},
    "evaluation": {"file": DEMO / "fashion_evaluation.npz", "samples": 500},
}
# Without repair, so that there is much to learn in a few steps.
PRUNE = {"prune": {"target": {"parameters_ratio": 0.3}, "repair": []}}
LEARN = {"distill": {"budget": {"steps": 40}, "validations": 4}}


def built(passes: list[dict[str, Any]], folder: Path) -> tuple[Manifest, Path, list[BuildProgress]]:
    store = store_at(folder)[1]
    said: list[BuildProgress] = []
    request = BuildRequest(
        model_name="fashion",
        model=ModelConfig.model_validate(FASHION),
        tier="learned",
        profile=ProfileConfig.model_validate({"passes": passes}),
    )
    result = build(request, store=store, threads=1, threads_of_serving=1, on_progress=said.append)
    assert (result.outcome, result.reasons) == (BuildOutcome.BUILT, ())
    tier = store.open(result.key or "")
    assert tier is not None
    return tier.manifest, tier.folder, said


def quality(manifest: Manifest) -> float:
    assert manifest.measurements is not None
    return manifest.measurements.quality["sqnr_db"]


def test_pruned_classifier_comes_nearer_to_dense_by_learning_and_can_be_quantized(tmp_path: Path) -> None:
    pruned, _, _ = built([PRUNE], tmp_path)
    learned, folder, said = built([PRUNE, LEARN], tmp_path)
    assert quality(learned) > quality(pruned) + 0.5
    report = learned.passes[1].report
    assert report["samples"] == {"learned_from": 230, "held_out": 26}
    assert report["quality"] > report["quality_before"]
    assert [row["step"] for row in report["history"]] == [0, 10, 20, 30, 40]
    assert report["outputs"] == ["logits"]
    assert report["intermediate"]
    assert report["warnings"] == []
    # The bar shows how the learning goes.
    words = [progress.message for progress in said if progress.stage == "distill"]
    assert any("loss 0." in text and "quality 0." in text for text in words)
    graphs = [onnx.load(found / GRAPH_FILE) for found in (folder, folder.parent / pruned.key)]
    assert [node.op_type for node in graphs[0].graph.node] == [node.op_type for node in graphs[1].graph.node]

    integer, folder, _ = built([PRUNE, LEARN, {"quantize": {}}], tmp_path)
    assert [step.name for step in integer.passes] == ["prune", "distill", "quantize"]
    # It went on from the tier before: what was learned there is not learned again.
    assert integer.passes[1] == learned.passes[1]
    assert quality(integer) > quality(pruned)
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(folder / GRAPH_FILE).graph.node)


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ([{"distill": {"budget": {"steps": 4}}}], "distill: the pass changed nothing: after 4 steps"),
        (
            [{"distill": {"budget": {"seconds": 0.01}, "batch_size": 1}}],
            "which one epoch (every sample learned from once) needs on this machine, got 0.01",
        ),
        ([{"quantize": {}}, {"distill": {}}], "no gradients through an integer or quantized graph"),
    ],
)
def test_compress_says_why_nothing_was_learned(tmp_path: Path, passes: list[dict[str, Any]], reason: str) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump({"passes": passes}))
    words = ["compress", str(DEMO / "fashion.onnx"), "--profile", str(profile), "--store", str(tmp_path / "store")]
    words += ["--json", "--calibration", str(DEMO / "fashion_calibration.npz")]
    words += ["--evaluation", str(DEMO / "fashion_evaluation.npz")]
    finished = CliRunner().invoke(app, words)
    result = json.loads(finished.stdout)
    assert finished.exit_code in (1, 2)
    assert reason in result["reasons"][0]
