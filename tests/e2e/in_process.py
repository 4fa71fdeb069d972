"""Answers of the demo's models without any of serveprune's code: ONNX Runtime and the tokenizer alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from e2e.deployment import artifact_folder
from serveprune.oip.tensor import Array


def session(store: Path, *, model: str, tier: str) -> ort.InferenceSession:
    """Load an artifact of the demo."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = artifact_folder(store, model=model, tier=tier) / "model.onnx"
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def image_logits(store: Path, images: Array, *, tier: str) -> Array:
    """Return ``(N, 10)`` for ``(N, 1, 28, 28)``, each image alone."""
    network = session(store, model="fashion", tier=tier)
    return np.concatenate([network.run(None, {"image": image[np.newaxis]})[0] for image in images])


def text_vectors(store: Path, texts: Sequence[str], *, tier: str) -> Array:
    """Return ``(N, 384)``, each text alone, so that nothing is padded."""
    tokenizer = Tokenizer.from_file(str(artifact_folder(store, model="minilm", tier="dense") / "tokenizer.json"))
    tokenizer.no_padding()
    network = session(store, model="minilm", tier=tier)
    vectors = []
    for text in texts:
        encoding = tokenizer.encode(text)
        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        feeds = {value.name: np.array([columns[value.name]], dtype=np.int64) for value in network.get_inputs()}
        vectors.append(network.run(None, feeds)[0])
    return np.concatenate(vectors)
