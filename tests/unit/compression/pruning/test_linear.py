from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from unit.compression.graphs import save

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.linear import LinearMap


def linear_map(path: Path, *, axis: int) -> tuple[LinearMap | None, ir.Node, ir.Model]:
    model = ir.load(path)
    node = next(iter(model.graph))
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    return LinearMap.of(node, data=data, weight=weight, channels_axis=axis), node, model


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((1, 1), {}),
        ((3, 3), {"pads": [1, 1, 1, 1]}),
        ((3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
        ((3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((2, 2), {"auto_pad": "SAME_LOWER"}),
        ((3,), {"pads": [1, 1]}),
    ],
)
def test_rows_times_matrix_are_the_convolution(
    tmp_path: Path, kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    space = (7, 6)[: len(kernel)]
    weights = {
        "w": rng.standard_normal((4, 3, *kernel)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
    }
    path = save(
        tmp_path / "conv.onnx",
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)],
        weights,
        inputs={"x": (TensorProto.FLOAT, ["n", 3, *space])},
        outputs={"y": ["n", 4, *(f"s{axis}" for axis in range(len(kernel)))]},
    )
    item, node, _ = linear_map(path, axis=1)
    assert item is not None
    x = rng.standard_normal((2, 3, *space)).astype(np.float32)
    (y,) = OnnxRuntimeBackend().load(path).run({"x": x})
    product = item.rows(x, node) @ item.matrix(weights["w"]) + weights["b"]
    np.testing.assert_allclose(product, item.outputs(y), atol=1e-4)


@pytest.mark.parametrize(
    ("attributes", "offset"),
    [
        ({"alpha": 0.5}, (3,)),
        ({"beta": 2.0}, (3,)),
        ({"transA": 1}, (3,)),
        ({}, (4, 3)),
        ({}, None),
    ],
)
def test_gemm_is_no_plain_product_when_it_does_more_than_multiply_and_add_a_vector(
    tmp_path: Path, attributes: dict[str, Any], offset: tuple[int, ...] | None
) -> None:
    weights = {"w": np.ones((4, 3), np.float32)} | ({} if offset is None else {"c": np.ones(offset, np.float32)})
    inputs: dict[str, tuple[int, Sequence[int | str]]] = {"x": (TensorProto.FLOAT, [4, 4])}
    if offset is None:
        inputs["c"] = (TensorProto.FLOAT, [4, 3])
    path = save(
        tmp_path / "gemm.onnx",
        [helper.make_node("Gemm", ["x", "w", "c"], ["y"], **attributes)],
        weights,
        inputs=inputs,
        outputs={"y": [4, 3]},
    )
    item, _, _ = linear_map(path, axis=0)
    assert item is None


def test_weight_is_no_layers_own_when_two_layers_read_it(tmp_path: Path) -> None:
    path = save(
        tmp_path / "tied.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])],
        {"w": np.ones((4, 4), np.float32)},
        inputs={"x": (TensorProto.FLOAT, ["n", 4])},
        outputs={"y": ["n", 4]},
    )
    item, _, _ = linear_map(path, axis=0)
    assert item is None


@pytest.mark.parametrize(
    ("operator", "axis", "attributes"), [("MatMul", 0, {}), ("Gemm", 1, {"transB": 1}), ("Gemm", 0, {})]
)
def test_rows_times_matrix_are_the_product(
    tmp_path: Path, operator: str, axis: int, attributes: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    shape = (5, 3) if axis == 0 else (3, 5)
    weight = rng.standard_normal(shape).astype(np.float32)
    path = save(
        tmp_path / "product.onnx",
        [helper.make_node(operator, ["x", "w"], ["y"], **attributes)],
        {"w": weight},
        inputs={"x": (TensorProto.FLOAT, ["n", 5])},
        outputs={"y": ["n", 3]},
    )
    item, node, _ = linear_map(path, axis=axis)
    assert item is not None
    x = rng.standard_normal((4, 5)).astype(np.float32)
    (y,) = OnnxRuntimeBackend().load(path).run({"x": x})
    np.testing.assert_allclose(item.rows(x, node) @ item.matrix(weight), y, atol=1e-5)


def test_weight_like_undoes_matrix_for_every_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for operator, shape, axis, taps in (("MatMul", (5, 3), 0, 1), ("Gemm", (3, 5), 1, 1), ("Conv", (4, 3, 2, 2), 1, 4)):
        item = LinearMap(operator, "y", "x", "w", axis, taps)
        weight = rng.standard_normal(shape).astype(np.float32)
        back = item.weight_like(item.matrix(weight), weight)
        np.testing.assert_array_equal(back, weight)
        assert back.dtype == np.float32


def test_matrix_rows_are_all_taps_of_the_channels() -> None:
    item = LinearMap("Conv", "y", "x", "w", 1, 4)
    assert item.matrix_rows(np.array([0, 2])).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_grouped_convolution_is_no_linear_map(tmp_path: Path) -> None:
    path = save(
        tmp_path / "grouped.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2)],
        {"w": np.ones((4, 2, 1, 1), np.float32)},
        inputs={"x": (TensorProto.FLOAT, ["n", 4, 3, 3])},
        outputs={"y": ["n", 4, 3, 3]},
    )
    assert linear_map(path, axis=1)[0] is None
