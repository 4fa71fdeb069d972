import numpy as np
import pytest
from unit.graph.executor.parity import Case, assert_gradients, assert_parity

_RANDOM = np.random.default_rng(0)
_X = _RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
_Y = _RANDOM.standard_normal((3, 1)).astype(np.float32)
_ABOVE_1 = (np.abs(_X) + 1.01).astype(np.float32)
_BELOW_1 = np.tanh(_X).astype(np.float32)
_INTEGERS = np.array([-7, -3, -1, 0, 2, 5, 7, 8])
_DIVISORS = np.array([3, -2, 4, 5, -3, 3, 2, -8])
_BOOLEANS = np.array([True, True, False, False]), np.array([True, False, True, False])
_ODD_NUMBERS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5], np.float32)
_HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.4], np.float32)

_OF_ONE_NUMBER = [
    *(Case(name, [_X]) for name in ("Abs", "Atan", "Asinh", "Cos", "Cosh", "Erf", "Exp", "Neg", "Sin", "Sinh", "Tan")),
    *(Case(name, [_BELOW_1]) for name in ("Acos", "Asin", "Atanh")),
    *(Case(name, [_ABOVE_1]) for name in ("Acosh", "Log", "Reciprocal", "Sqrt")),
    *(Case(name, [_HALVES]) for name in ("Ceil", "Floor", "Round", "Sign")),
    *(Case(name, [_INTEGERS]) for name in ("Abs", "Neg", "Sign")),
    Case("IsNaN", [_ODD_NUMBERS]),
    *(
        Case("IsInf", [_ODD_NUMBERS], {"detect_negative": negative, "detect_positive": positive})
        for negative in (0, 1)
        for positive in (0, 1)
    ),
    Case("Not", [_BOOLEANS[0]]),
    Case("BitwiseNot", [_INTEGERS]),
]
_ARITHMETIC = [
    *(Case(name, [_X, _Y]) for name in ("Add", "Sub", "Mul", "Div")),
    *(Case(name, [_INTEGERS, _DIVISORS]) for name in ("Add", "Sub", "Mul", "Div", "Mod")),
    *(Case("Mod", [_INTEGERS.astype(dtype), _DIVISORS.astype(dtype)], {"fmod": 1}) for dtype in (np.int32, np.float32)),
    Case("Div", [_INTEGERS.astype(np.int32), np.array(2, np.int32)], name="scalar"),
    Case("Pow", [_ABOVE_1, _Y]),
    Case("Pow", [_X, np.array(3, np.float32)], constants=(1,), name="constant"),
    Case("Pow", [_X, np.array([2], np.int64)], constants=(1,), name="integer-exponent"),
    Case("Pow", [_INTEGERS, np.array(2, np.int64)], name="integers"),
    Case("Pow", [np.abs(_INTEGERS).astype(np.int32), np.array(0.5, np.float32)], name="integer-root"),
    *(Case(name, [_X, _Y, np.array(0.1, np.float32)]) for name in ("Max", "Min", "Sum", "Mean")),
    *(Case(name, [_X], name="of-one") for name in ("Max", "Min", "Sum", "Mean")),
    *(Case(name, [_INTEGERS, _DIVISORS]) for name in ("Max", "Min")),
]
_LOGIC = [
    *(Case(name, list(_BOOLEANS)) for name in ("And", "Or", "Xor", "Equal")),
    *(
        Case(name, [_INTEGERS, np.array([-7, 0, -1, 1, 2, 6, 7, 7])])
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(Case(name, [_X, _Y]) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(name, [_INTEGERS, _DIVISORS]) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    *(
        Case("BitShift", [np.array([16, 4, 1], np.uint8), np.array([1, 2, 3], np.uint8)], {"direction": direction})
        for direction in ("LEFT", "RIGHT")
    ),
    Case("Where", [_X > 0, _X, _Y]),
    Case("Where", [_INTEGERS > 0, _INTEGERS, np.array(9)], name="integers"),
]
_LIMITS = [
    Case("Clip", [_X, np.array(-0.5, np.float32), np.array(0.5, np.float32)], constants=(1, 2)),
    Case("Clip", [_X, None, np.array(0.5, np.float32)], name="above"),
    Case("Clip", [_X, np.array(-0.5, np.float32)], name="below"),
    Case("Clip", [_X], name="no-limit"),
    Case("Clip", [_INTEGERS, np.array(-2), np.array(5)], name="integers"),
    Case("Clip", [_X], {"min": -0.5, "max": 0.25}, opset=10),
    Case("Clip", [_X], {"max": 0.25}, opset=10),
]


@pytest.mark.parametrize("case", [*_OF_ONE_NUMBER, *_ARITHMETIC, *_LOGIC, *_LIMITS], ids=str)
def test_elementwise_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("Div", [_X, _Y + 3]),
        Case("Pow", [_ABOVE_1, _Y]),
        Case("Max", [_X, _Y, _X[0] * 2]),
        Case("Clip", [_X, np.array(-0.5, np.float32), np.array(0.5, np.float32)], constants=(1, 2)),
        Case("Where", [_X > 0, _X, _Y], constants=(0,)),
    ],
    ids=str,
)
def test_elementwise_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    assert_gradients(case)
