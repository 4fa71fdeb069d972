import json
import logging
from pathlib import Path

import pytest
from unit.compression.graphs import convolutional_graph, image_dataset

from serveprune.compression.quantization.layer_errors import LayerErrors
from serveprune.compression.quantization.layers import quantizable_layers
from serveprune.compression.quantization.preparation import prepare_for_quantization
from serveprune.compression.quantization.quantizer import Quantizer
from serveprune.compression.quantization.scheme import Scheme

SAMPLES = image_dataset(16, seed=3)


def quantizer(folder: Path, *, scheme: Scheme) -> Quantizer:
    graph = convolutional_graph(folder / "net.onnx")
    model = prepare_for_quantization(graph, output=folder / "prepared.onnx", threads=1)
    return Quantizer(
        folder / "prepared.onnx",
        model,
        scheme=scheme,
        reduce_range=False,
        calibration=SAMPLES,
        workspace=folder,
        threads=1,
    )


def kept(folder: Path) -> LayerErrors:
    graph = folder / "net.onnx"
    return LayerErrors(folder / "cache", graph=graph, scheme="static", reduce_range=False, calibration=SAMPLES)


def test_layers_have_the_names_of_their_weights_and_the_activation_that_goes_along(tmp_path: Path) -> None:
    found = quantizable_layers(quantizer(tmp_path, scheme="static"))
    assert [(layer.node, layer.label, layer.operator, layer.activation) for layer in found] == [
        ("stem/conv", "stem", "Conv", "stem/relu"),
        ("block/conv", "block", "Conv", None),
        ("head", "head", "Gemm", None),
    ]


def test_layers_of_the_dynamic_scheme_are_matrix_products_only(tmp_path: Path) -> None:
    assert [layer.node for layer in quantizable_layers(quantizer(tmp_path, scheme="dynamic"))] == ["head"]


def test_layer_errors_are_measured_once_and_read_by_the_next_who_asks(tmp_path: Path) -> None:
    found = quantizer(tmp_path, scheme="static")
    layers, done = quantizable_layers(found), list[float]()
    assert kept(tmp_path).read() is None

    def errors() -> dict[str, float]:
        return kept(tmp_path).obtain(
            found,
            layers,
            prepared=tmp_path / "prepared.onnx",
            samples=SAMPLES,
            workspace=tmp_path,
            threads=1,
            progress=done.append,
        )

    first = errors()
    assert set(first) == {"stem/conv", "block/conv", "head"}
    assert all(0 < error < 1 for error in first.values())
    assert done == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert errors() == first == kept(tmp_path).read()
    assert len(done) == 3


def test_layer_errors_are_measured_anew_when_the_entry_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convolutional_graph(tmp_path / "net.onnx")
    kept(tmp_path).write({"stem/conv": 0.1})
    (entry,) = (tmp_path / "cache").iterdir()
    assert kept(tmp_path).read() == {"stem/conv": 0.1}
    entry.write_text(json.dumps({"layer_errors": {"stem/conv": "much"}}))
    with caplog.at_level(logging.WARNING):
        assert kept(tmp_path).read() is None
    assert "cannot be read and are measured anew" in caplog.text
