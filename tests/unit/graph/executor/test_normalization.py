import numpy as np
import pytest
from unit.graph.executor.parity import Case, assert_gradients, assert_parity

_RANDOM = np.random.default_rng(0)


def _numbers(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


_X = 2 * _numbers(2, 6, 4, 5) + 0.3
_FLAT = _numbers(3, 6)
_SCALE, _BIAS, _MEAN = _numbers(6), _numbers(6), _numbers(6)
_VARIANCE = np.abs(_numbers(6)) + 0.2
_HIDDEN = _numbers(2, 5, 8)
_GAMMA, _BETA = _numbers(8), _numbers(8)

_OF_CHANNELS = [
    Case("BatchNormalization", [_X, _SCALE, _BIAS, _MEAN, _VARIANCE], constants=(1, 2, 3, 4)),
    Case("BatchNormalization", [_FLAT, _SCALE, _BIAS, _MEAN, _VARIANCE], {"epsilon": 0.1}, opset=9),
    Case(
        "BatchNormalization",
        [_X, _SCALE, _BIAS, _MEAN, _VARIANCE],
        {"training_mode": 1, "momentum": 0.7},
        outputs=(True, True, True),
        opset=15,
    ),
    Case("InstanceNormalization", [_X, _SCALE, _BIAS], {"epsilon": 0.01}),
    *(Case("GroupNormalization", [_X, _SCALE, _BIAS], {"num_groups": groups}, opset=21) for groups in (1, 2, 6)),
    Case("GroupNormalization", [_X, _SCALE[:3], _BIAS[:3]], {"num_groups": 3, "epsilon": 0.1}, opset=18),
    *(Case("LRN", [_X], {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5}) for size in (1, 3, 5)),
    Case("MeanVarianceNormalization", [_X]),
    Case("MeanVarianceNormalization", [_X], {"axes": [1, 2]}),
]
_OF_LAYERS = [
    Case("LayerNormalization", [_HIDDEN, _GAMMA, _BETA], constants=(1, 2)),
    Case("LayerNormalization", [_HIDDEN, _GAMMA], name="no-bias"),
    Case("LayerNormalization", [_HIDDEN, _GAMMA, _BETA], {"epsilon": 0.1}, outputs=(True, True, True)),
    Case("LayerNormalization", [_HIDDEN, _numbers(5, 8), _numbers(5, 8)], {"axis": 1}, outputs=(True, True, True)),
    Case("LayerNormalization", [_HIDDEN, _numbers(5, 8), _numbers(5, 8)], {"axis": -2}),
    Case("SimplifiedLayerNormalization", [_HIDDEN, _GAMMA], {"epsilon": 0.1, "axis": -1}, outputs=(True, True)),
    Case("SimplifiedLayerNormalization", [_HIDDEN, _GAMMA], {"epsilon": 1e-6, "axis": 2}),
    Case("RMSNormalization", [_HIDDEN, _GAMMA], opset=23),
    Case("RMSNormalization", [_HIDDEN, _numbers(5, 8)], {"axis": 1, "epsilon": 0.1}, opset=23),
    Case("com.microsoft::SkipLayerNormalization", [_HIDDEN, _numbers(2, 5, 8), _GAMMA, _BETA, _numbers(8)]),
    Case("com.microsoft::SkipLayerNormalization", [_HIDDEN, _numbers(2, 5, 8), _GAMMA], {"epsilon": 1e-5}),
    Case("com.microsoft::SkipLayerNormalization", [_HIDDEN, _numbers(1, 5, 8), _GAMMA, _BETA], name="broadcast"),
    Case(
        "com.microsoft::SkipLayerNormalization",
        [_HIDDEN, _numbers(2, 5, 8), _GAMMA, _BETA],
        outputs=(True, False, False, True),
    ),
    Case(
        "com.microsoft::SkipSimplifiedLayerNormalization",
        [_HIDDEN, _numbers(2, 5, 8), _GAMMA, _numbers(8)],
        {"epsilon": 1e-5},
        outputs=(True, False, False, True),
    ),
    Case(
        "com.microsoft::EmbedLayerNormalization",
        [
            _RANDOM.integers(0, 7, (2, 5)).astype(np.int32),
            _RANDOM.integers(0, 2, (2, 5)).astype(np.int32),
            _numbers(7, 8),
            _numbers(6, 8),
            _numbers(2, 8),
            _GAMMA,
            _BETA,
            np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
        ],
        constants=(2, 3, 4, 5, 6),
        outputs=(True, True),
    ),
    Case(
        "com.microsoft::EmbedLayerNormalization",
        [
            _RANDOM.integers(0, 7, (2, 5)).astype(np.int32),
            None,
            _numbers(7, 8),
            _numbers(6, 8),
            None,
            _GAMMA,
            _BETA,
            None,
            _RANDOM.integers(0, 6, (2, 5)).astype(np.int32),
        ],
        outputs=(True, True, True),
        name="positions",
    ),
]
_BY_AXIS = [
    *(
        Case(name, [_X], attributes, opset=opset)
        for name in ("Softmax", "LogSoftmax", "Hardmax")
        for attributes, opset in (
            ({}, 13),
            ({"axis": 1}, 21),
            ({"axis": -2}, 13),
            ({}, 11),
            ({"axis": 2}, 11),
            ({"axis": 0}, 11),
        )
    ),
    *(Case("LpNormalization", [_X], {"axis": axis, "p": order}) for axis in (-1, 1) for order in (1, 2)),
    Case("LpNormalization", [np.zeros((2, 3), np.float32)], name="zeros"),
]


@pytest.mark.parametrize("case", [*_OF_CHANNELS, *_OF_LAYERS, *_BY_AXIS], ids=str)
def test_normalization_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("LayerNormalization", [_HIDDEN, _GAMMA, _BETA], outputs=(True, True, True)),
        Case("com.microsoft::SkipSimplifiedLayerNormalization", [_HIDDEN, _numbers(2, 5, 8), _GAMMA, _numbers(8)]),
        Case("GroupNormalization", [_X[:, :, :2], _SCALE[:3], _BIAS[:3]], {"num_groups": 3}, opset=18),
        Case("LRN", [_X[:, :, :2, :2]], {"size": 3}),
        Case("LpNormalization", [_X[0]]),
        Case("Softmax", [_X[0]], {"axis": 0}, opset=11),
    ],
    ids=str,
)
def test_normalization_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    assert_gradients(case)
