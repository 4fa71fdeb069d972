from contextlib import closing
from pathlib import Path

import onnx
import pytest
from unit.compression.graphs import convolutional_graph, image_dataset, images

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.quantization.preparation import prepare_for_quantization
from serveprune.compression.quantization.quantizer import Quantizer
from serveprune.compression.quantization.scheme import Scheme
from serveprune.compression.sensitivity.layer_changes import LayerChanges
from serveprune.compression.sensitivity.timing import PieceTimer


def changes(folder: Path, *, scheme: Scheme) -> LayerChanges:
    prepared = folder / "prepared.onnx"
    model = prepare_for_quantization(convolutional_graph(folder / "net.onnx"), output=prepared, threads=1)
    quantizer = Quantizer(
        prepared,
        model,
        scheme=scheme,
        reduce_range=False,
        calibration=image_dataset(8, seed=3),
        workspace=folder,
        threads=1,
    )
    return LayerChanges(quantizer, prepared=prepared, feeds={"image": images(4, seed=1)}, workspace=folder)


@pytest.mark.parametrize(("scheme", "names"), [("static", ["stem", "block", "head"]), ("dynamic", ["head"])])
def test_only_the_one_layer_is_quantized_and_its_gain_is_timed(
    tmp_path: Path, scheme: Scheme, names: list[str]
) -> None:
    found = changes(tmp_path, scheme=scheme)
    timer = PieceTimer(batch_size=4, threads=1, workspace=tmp_path)
    assert [layer.label for layer in found.layers] == names
    for layer in found.layers:
        found.write(layer, tmp_path / "one.onnx")
        integers = [
            tensor.name
            for tensor in onnx.load(tmp_path / "one.onnx").graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        ]
        assert len(integers) == 1
        with closing(OnnxRuntimeBackend().load(tmp_path / "one.onnx")) as session:
            assert session.run({"image": images(4, seed=1)})[0].shape == (4, 10)
        gain = found.gain(layer, timer)
        assert gain.low_ms <= gain.median_ms <= gain.high_ms
