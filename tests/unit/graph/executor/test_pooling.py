from typing import Any

import numpy as np
import pytest
from unit.graph.executor.parity import Case, assert_gradients, assert_parity

_RANDOM = np.random.default_rng(0)
_X = _RANDOM.standard_normal((2, 3, 10, 9)).astype(np.float32)
_LINE = _RANDOM.standard_normal((2, 3, 11)).astype(np.float32)
_VOLUME = _RANDOM.standard_normal((2, 2, 5, 6, 7)).astype(np.float32)
_BYTES = _RANDOM.integers(0, 255, (1, 2, 6, 6)).astype(np.uint8)
_SAME = ("SAME_UPPER", "SAME_LOWER", "VALID")
_WINDOWS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 3]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "strides": [3, 3], "pads": [1, 1, 2, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [1, 2]},
    {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 0, 2, 1], "ceil_mode": 1},
    *({"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": mode} for mode in _SAME),
]

_MAXIMA = [
    *(Case("MaxPool", [_X], window, outputs=outputs) for window in _WINDOWS for outputs in ((True,), (True, True))),
    Case("MaxPool", [_X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "storage_order": 1}, outputs=(True, True)),
    Case("MaxPool", [_LINE], {"kernel_shape": [4], "pads": [1, 2], "strides": [2]}, outputs=(True, True)),
    Case("MaxPool", [_VOLUME], {"kernel_shape": [2, 3, 2], "pads": [1, 1, 0, 0, 1, 1]}, outputs=(True, True)),
    Case("MaxPool", [_BYTES], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, name="bytes"),
]
_AVERAGES = [
    *(Case("AveragePool", [_X], {**window, "count_include_pad": counts}) for window in _WINDOWS for counts in (0, 1)),
    Case("AveragePool", [_LINE], {"kernel_shape": [4], "pads": [1, 2], "strides": [2]}),
    Case("AveragePool", [_VOLUME], {"kernel_shape": [2, 3, 2], "pads": [1, 1, 0, 0, 1, 1], "strides": [2, 1, 2]}),
]
_NORMS = [
    *(Case("LpPool", [_X], {**window, "p": 3}) for window in _WINDOWS),
    Case("LpPool", [_X], {"kernel_shape": [2, 2], "p": 1}),
    Case("LpPool", [_X], {"kernel_shape": [2, 2], "strides": [2, 2]}, opset=17),
]
_GLOBAL = [
    *(Case(name, [data]) for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool") for data in (_X, _VOLUME)),
    Case("GlobalLpPool", [_X], {"p": 1}),
    Case("GlobalLpPool", [_X], {"p": 3}),
]


@pytest.mark.parametrize("case", [*_MAXIMA, *_AVERAGES, *_NORMS, *_GLOBAL], ids=str)
def test_pooling_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("MaxPool", [_X[:1, :2, :5, :5]], {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1], "strides": [2, 2]}),
        Case("AveragePool", [_X[:1, :2, :5, :5]], {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1], "strides": [2, 2]}),
        Case("LpPool", [_X[:1, :2, :5, :5]], {"kernel_shape": [3, 2], "p": 3}),
    ],
    ids=str,
)
def test_pooling_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    assert_gradients(case)
