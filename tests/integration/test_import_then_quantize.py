"""What the import writes is what the passes read."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from unit.graph.huggingface_folders import write_bert_classifier

from serveprune.artifacts.environment import environment
from serveprune.artifacts.manifest import GRAPH_FILE
from serveprune.compression.passes import PassContext, apply_pass
from serveprune.config.model import ModelConfig
from serveprune.config.profile import QuantizeOptions
from serveprune.graph.importing import import_model
from serveprune.oip.tensor import Array

RANDOM = np.random.default_rng(0)


def factory(name: str, shape: list[int | str]) -> dict[str, Any]:
    return {"torch": f"unit.graph.networks:{name}", "inputs": [{"name": "x", "shape": shape}]}


def run(path: Path, feeds: dict[str, Array]) -> Array:
    result: Array = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    return result


def quantized(source: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Import a source and quantize it dynamically; return dense and tier."""
    dense, workspace = folder / "dense", folder / "workspace"
    dense.mkdir()
    workspace.mkdir()
    import_model(ModelConfig.model_validate({"source": source}), folder=dense, progress=lambda stage, fraction: None)
    context = PassContext(
        options=QuantizeOptions(scheme="dynamic"),
        calibration=None,
        cpu=environment()["cpu"],
        threads=1,
        seed=0,
        workspace=workspace,
        progress=lambda fraction: None,
    )
    apply_pass("quantize", dense / GRAPH_FILE, output=folder / "tier.onnx", context=context)
    return dense / GRAPH_FILE, folder / "tier.onnx"


@pytest.mark.parametrize(
    ("source", "feeds"),
    [
        (factory("perceptron", ["batch", 24]), RANDOM.normal(size=(6, 24))),
        (factory("recurrent", ["batch", "sequence", 4]), RANDOM.normal(size=(6, 9, 4))),
    ],
    ids=["perceptron", "recurrent"],
)
def test_imported_linear_heads_are_quantized_when_they_are_not_square(
    source: dict[str, Any], feeds: Array, tmp_path: Path
) -> None:
    dense, tier = quantized(source, tmp_path)
    x = {"x": feeds.astype(np.float32)}
    np.testing.assert_allclose(run(tier, x), run(dense, x), atol=0.05)


def test_imported_text_classifier_is_quantized_when_its_head_is_not_square(tmp_path: Path) -> None:
    folder = write_bert_classifier(tmp_path / "bert")
    dense, tier = quantized({"huggingface": str(folder), "task": "sequence-classification"}, tmp_path)
    ids = RANDOM.integers(4, 14, (4, 8))
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    taken = {value.name for value in ort.InferenceSession(str(dense)).get_inputs()}
    feeds = {name: array for name, array in known.items() if name in taken}
    np.testing.assert_allclose(run(tier, feeds), run(dense, feeds), atol=0.05)
