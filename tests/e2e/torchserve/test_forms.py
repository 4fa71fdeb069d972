"""A model in each form that an archive can have, against what computes it without TorchServe."""

import numpy as np
import onnxruntime as ort
import torch
from unit.graph import networks

from e2e.deployment import artifact_folder, fashion_images
from e2e.torchserve.messages import array_of
from e2e.torchserve.torchserve_process import TorchServeProcess


def test_onnx_file_is_served_dense_and_compressed(torchserve: TorchServeProcess) -> None:
    images = fashion_images(torchserve.folder, 4)
    compressed = artifact_folder(torchserve.folder / "artifacts", model="fashion", tier="int8") / "model.onnx"
    for tier, file in (("dense", torchserve.folder / "fashion.onnx"), ("int8", compressed)):
        answer = torchserve.ask("fashion", json={"image": images.tolist()}, headers={"x-compression-tier": tier})
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (expected,) = session.run(["logits"], {"image": images})
        np.testing.assert_allclose(array_of(answer, "logits"), expected, atol=1e-3)
        assert answer.headers["x-compression-tier"] == tier


def test_hugging_face_folder_is_served_with_its_tokenizer(torchserve: TorchServeProcess) -> None:
    texts = ["the cat sat on the mat", "a cat is sitting on a mat", "interest rates were raised again"]
    vectors = array_of(torchserve.ask("minilm", json={"text": texts}), "embedding")

    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    alike, unlike = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert alike > 0.7
    assert unlike < 0.3


def test_state_dict_is_served_through_its_class(torchserve: TorchServeProcess) -> None:
    x = np.random.default_rng(1).normal(size=(3, 24)).astype(np.float32)
    with torch.no_grad():
        expected = networks.perceptron().eval()(torch.from_numpy(x)).numpy()

    np.testing.assert_allclose(array_of(torchserve.ask("eager", json={"x": x.tolist()}), "output"), expected, atol=1e-5)


def test_exported_program_is_served_with_all_its_outputs(torchserve: TorchServeProcess) -> None:
    image = np.random.default_rng(2).normal(size=(2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = [each.numpy() for each in networks.convolutional().eval()(torch.from_numpy(image))]

    answer = torchserve.ask("program", json=image.tolist())

    assert answer.status_code == 200, answer.text
    given = [np.asarray(value, dtype=np.float32) for value in answer.json().values()]
    assert len(given) == 2
    for output, wanted in zip(given, expected, strict=True):
        np.testing.assert_allclose(output, wanted, atol=1e-5)
