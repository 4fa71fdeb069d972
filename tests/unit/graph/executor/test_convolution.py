from typing import Any

import numpy as np
import pytest
from unit.graph.executor.parity import Case, assert_gradients, assert_parity

_RANDOM = np.random.default_rng(0)


def _numbers(*shape: int) -> np.ndarray:
    scale = np.prod(shape[1:]) ** -0.5
    return np.asarray(scale * _RANDOM.standard_normal(shape), np.float32)


_X = _RANDOM.standard_normal((2, 4, 9, 8)).astype(np.float32)
_SAME = ("SAME_UPPER", "SAME_LOWER", "VALID")


def _convolution(weight: np.ndarray, name: str = "", **attributes: Any) -> Case:
    data = _RANDOM.standard_normal((2, weight.shape[1] * attributes.get("group", 1), 9, 8, 7)[: weight.ndim])
    return Case("Conv", [data.astype(np.float32), weight, _numbers(len(weight))], attributes, name=name)


def _transposed(weight: np.ndarray, name: str = "", **attributes: Any) -> Case:
    data = _RANDOM.standard_normal((2, len(weight), 5, 6, 4)[: weight.ndim]).astype(np.float32)
    bias = _numbers(weight.shape[1] * attributes.get("group", 1))
    return Case("ConvTranspose", [data, weight, bias], attributes, name=name)


_CONVOLUTIONS = [
    _convolution(_numbers(6, 4, 3, 3)),
    _convolution(_numbers(6, 4, 3), pads=[1, 1]),
    _convolution(_numbers(3, 2, 2, 3, 2), strides=[1, 2, 1], name="volume"),
    _convolution(_numbers(6, 4, 3, 2), pads=[1, 0, 2, 1], strides=[2, 1], dilations=[2, 3], name="asymmetric"),
    _convolution(_numbers(6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    _convolution(_numbers(8, 1, 3, 3), group=4, pads=[1, 1, 1, 1], name="depthwise"),
    *(_convolution(_numbers(6, 4, 3, 2), auto_pad=mode, strides=[2, 3]) for mode in _SAME),
    *(_convolution(_numbers(6, 4, 2, 4), auto_pad=mode) for mode in _SAME),
    Case("Conv", [_X, _numbers(6, 4, 3, 3)], {"kernel_shape": [3, 3]}, constants=(1,), name="no-bias"),
]
_FUSED = [
    Case("com.microsoft::FusedConv", [_X, _numbers(6, 4, 3, 3), _numbers(6)], {"activation": "Relu"}),
    Case(
        "com.microsoft::FusedConv",
        [_X, _numbers(6, 4, 3, 3), None, _numbers(2, 6, 7, 6)],
        {"activation": "LeakyRelu", "activation_params": [0.3]},
    ),
    Case(
        "com.microsoft::FusedConv",
        [_X, _numbers(6, 4, 3, 3)],
        {"activation": "Clip", "activation_params": [-0.2, 0.3]},
    ),
    Case(
        "com.microsoft::FusedConv",
        [_X, _numbers(6, 4, 3, 3)],
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
    ),
]
_TRANSPOSED = [
    _transposed(_numbers(4, 6, 3, 3)),
    _transposed(_numbers(4, 6, 3), strides=[2], pads=[1, 0]),
    _transposed(_numbers(4, 2, 2, 3, 2), strides=[2, 1, 2], name="volume"),
    _transposed(_numbers(4, 6, 3, 2), pads=[1, 0, 2, 1], strides=[2, 3], dilations=[2, 1], name="asymmetric"),
    _transposed(_numbers(4, 3, 3, 3), group=2, strides=[2, 2], output_padding=[1, 1], pads=[1, 1, 1, 1]),
    _transposed(_numbers(4, 6, 3, 3), strides=[3, 3], output_padding=[2, 1]),
    _transposed(_numbers(4, 6, 3, 3), strides=[3, 2], output_shape=[14, 12]),
    _transposed(_numbers(4, 6, 3, 3), strides=[3, 2], output_shape=[15, 12], auto_pad="SAME_UPPER"),
    _transposed(_numbers(4, 6, 3, 3), strides=[3, 2], output_shape=[14, 12], auto_pad="SAME_LOWER"),
    *(_transposed(_numbers(4, 6, 3, 4), strides=[2, 2], auto_pad=mode) for mode in _SAME),
]


@pytest.mark.parametrize("case", [*_CONVOLUTIONS, *_FUSED, *_TRANSPOSED], ids=str)
def test_convolution_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("Conv", [_X[:, :, :5, :5], _numbers(2, 4, 3, 2), _numbers(2)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        Case(
            "ConvTranspose",
            [_X[:, :, :3, :3], _numbers(4, 1, 3, 2), _numbers(2)],
            {"pads": [1, 0, 2, 1], "strides": [3, 2], "output_padding": [1, 1], "group": 2},
        ),
    ],
    ids=str,
)
def test_convolution_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    assert_gradients(case)
