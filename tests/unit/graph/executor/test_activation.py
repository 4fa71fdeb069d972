import numpy as np
import pytest
from unit.graph.executor.parity import Case, assert_gradients, assert_parity, module

from serveprune.errors import InvalidArgument

_RANDOM = np.random.default_rng(0)
_X = (3 * _RANDOM.standard_normal((2, 3, 8))).astype(np.float32)
_BIAS = _RANDOM.standard_normal(8).astype(np.float32)

_PLAIN = [
    *(
        Case(name, [_X], opset=22)
        for name in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Mish", "Softplus", "Softsign", "LeakyRelu", "Elu", "Celu")
    ),
    *(Case(name, [_X]) for name in ("Selu", "ThresholdedRelu", "HardSigmoid", "Shrink", "Gelu")),
    Case("Swish", [_X], opset=24),
    Case("Relu", [np.array([-3, 0, 4], np.int32)], name="integers"),
    Case("LeakyRelu", [_X], {"alpha": 0.2}),
    Case("Elu", [_X], {"alpha": 0.7}),
    Case("Celu", [_X], {"alpha": 1.6}),
    Case("Selu", [_X], {"alpha": 1.1, "gamma": 0.8}),
    Case("ThresholdedRelu", [_X], {"alpha": 0.4}),
    Case("HardSigmoid", [_X], {"alpha": 0.5, "beta": 0.4}),
    Case("Swish", [_X], {"alpha": 0.5}, opset=24),
    Case("Shrink", [_X], {"bias": 0.3, "lambd": 1.0}),
    Case("Gelu", [_X], {"approximate": "tanh"}),
    Case("PRelu", [_X, _BIAS], constants=(1,)),
    Case("PRelu", [_X, np.array([[0.1], [0.2], [0.3]], np.float32)], name="per-channel"),
    Case("Softplus", [10 * _X], name="far"),
]
_OF_MICROSOFT = [
    Case("com.microsoft::Gelu", [_X]),
    Case("com.microsoft::QuickGelu", [_X]),
    Case("com.microsoft::QuickGelu", [_X], {"alpha": 1.0}),
    Case("com.microsoft::BiasGelu", [_X, _BIAS]),
    Case("com.microsoft::FastGelu", [_X]),
    Case("com.microsoft::FastGelu", [_X, _BIAS], name="bias"),
]


@pytest.mark.parametrize("case", [*_PLAIN, *_OF_MICROSOFT], ids=str)
def test_activation_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("Shrink", [_X], {"bias": 0.3, "lambd": 1.0}),
        Case("Swish", [_X], {"alpha": 0.5}, opset=24),
        Case("PRelu", [_X, _BIAS]),
        Case("com.microsoft::FastGelu", [_X, _BIAS]),
    ],
    ids=str,
)
def test_activation_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    assert_gradients(case)


def test_fused_node_is_refused_when_its_activation_is_unknown() -> None:
    weight = np.ones((2, 3, 1), np.float32)
    case = Case("com.microsoft::FusedConv", [_X, weight], {"activation": "Cosine"}, constants=(1,))
    with pytest.raises(InvalidArgument, match="FusedConv node ends with the activation Cosine"):
        module(case.model())
