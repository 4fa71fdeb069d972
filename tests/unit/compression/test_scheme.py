from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from unit.compression.graphs import convolutional_graph, embedding_graph, recurrent_graph, save

from serveprune.compression.quantization.scheme import multiplications
from serveprune.oip.tensor import Array


def test_multiplications_are_counted_per_position_of_a_filter(tmp_path: Path) -> None:
    counted = multiplications(onnx.load(convolutional_graph(tmp_path / "model.onnx", channels=32)))
    # By hand: 16 x 16 positions, 3x3 filters from 3 and from 32 to 32 channels; and one row of 32 x 10.
    assert counted.convolution == 256 * (32 * 3 * 9 + 32 * 32 * 9)
    assert counted.matrix == 320
    assert counted.scheme == "static"


def test_multiplications_of_matrix_products_are_counted_per_token(tmp_path: Path) -> None:
    counted = multiplications(onnx.load(embedding_graph(tmp_path / "model.onnx", width=64)))
    assert counted.matrix == 64 * (64 * 256 + 256 * 64)
    assert counted.convolution == 0
    assert counted.scheme == "dynamic"


def test_scheme_is_dynamic_when_the_net_is_recurrent(tmp_path: Path) -> None:
    counted = multiplications(onnx.load(recurrent_graph(tmp_path / "model.onnx")))
    assert counted.recurrent > 0
    assert counted.scheme == "dynamic"


def _classifier(path: Path, *, patch: int, hidden: int, tokens: bool) -> onnx.ModelProto:
    """A convolution followed by one large matrix product, over all tokens or once."""
    weights: dict[str, Array] = {
        "filter": np.zeros((16, 3, patch, patch), dtype=np.float32),
        "shape": np.array([0, 16, -1] if tokens else [0, -1], dtype=np.int64),
    }
    size = 32 // patch
    nodes = [
        helper.make_node("Conv", ["x", "filter"], ["map"], name="conv", strides=[patch, patch]),
        helper.make_node("Reshape", ["map", "shape"], ["flat"], name="flat"),
    ]
    if tokens:
        weights["w"] = np.zeros((16, hidden), dtype=np.float32)
        nodes += [
            helper.make_node("Transpose", ["flat"], ["tokens"], name="turn", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["tokens", "w"], ["y"], name="project"),
        ]
        outputs: list[int | str] = ["n", size * size, hidden]
    else:
        weights["w"] = np.zeros((16 * size * size, hidden), dtype=np.float32)
        nodes.append(helper.make_node("Gemm", ["flat", "w"], ["y"], name="project"))
        outputs = ["n", hidden]
    save(path, nodes, weights, inputs={"x": (TensorProto.FLOAT, ["n", 3, 32, 32])}, outputs={"y": outputs})
    return onnx.load(path)


def test_scheme_is_dynamic_when_a_patch_convolution_feeds_a_transformer(tmp_path: Path) -> None:
    model = _classifier(tmp_path / "model.onnx", patch=8, hidden=512, tokens=True)
    assert multiplications(model).scheme == "dynamic"


def test_scheme_is_static_when_most_weights_but_little_work_are_in_the_last_layer(tmp_path: Path) -> None:
    model = _classifier(tmp_path / "model.onnx", patch=1, hidden=20, tokens=False)
    counted = multiplications(model)
    assert counted.matrix == 16 * 32 * 32 * 20
    assert counted.convolution == 32 * 32 * 16 * 3
    assert counted.scheme == "dynamic"
    narrow = _classifier(tmp_path / "model.onnx", patch=1, hidden=2, tokens=False)
    assert multiplications(narrow).scheme == "static"
