import numpy as np
import pytest
from unit.graph.executor.parity import Case, assert_gradients, assert_parity

_RANDOM = np.random.default_rng(0)
_X = _RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
_POSITIVE = np.abs(_X) + 0.1
_INTEGERS = _RANDOM.integers(-5, 6, (2, 3, 4)).astype(np.int32)
_TIES = _RANDOM.integers(0, 3, (3, 4, 5)).astype(np.float32)
_NAMES = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)


def _axes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_REDUCED = [
    *(Case(name, [_POSITIVE, _axes(0, -1)], {"keepdims": stay}) for name in _NAMES for stay in (0, 1)),
    *(Case(name, [_POSITIVE, _axes(1)], constants=(1,), name="constant") for name in _NAMES),
    *(Case(name, [_POSITIVE], {"keepdims": 0}, name="all") for name in _NAMES),
    *(Case(name, [_POSITIVE, _axes()], name="empty") for name in _NAMES),
    *(Case(name, [_POSITIVE], {"axes": [2, 0], "keepdims": 0}, opset=12) for name in _NAMES),
    *(Case(name, [_POSITIVE], opset=11) for name in _NAMES),
    *(
        Case(name, [_INTEGERS, _axes(1)], name="integers")
        for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "ReduceL1")
    ),
    *(Case(name, [_X, _axes()], {"noop_with_empty_axes": 1}) for name in ("ReduceSum", "ReduceMean", "ReduceMax")),
    Case("ReduceSum", [np.array(3, np.float32)], name="scalar"),
    Case("ReduceSum", [_X], {"noop_with_empty_axes": 1}, name="no-axes"),
    Case("ReduceMax", [_X > 0, _axes(1)], opset=20, name="booleans"),
]
_POSITIONS = [
    Case(name, [_TIES], {"axis": axis, "keepdims": stay, "select_last_index": last})
    for name in ("ArgMax", "ArgMin")
    for axis in (0, -1)
    for stay in (0, 1)
    for last in (0, 1)
]
_RUNNING = [
    Case("CumSum", [_X, np.array(axis)], {"exclusive": exclusive, "reverse": backwards})
    for axis in (0, -1)
    for exclusive in (0, 1)
    for backwards in (0, 1)
]


@pytest.mark.parametrize(
    "case", [*_REDUCED, *_POSITIONS, *_RUNNING, Case("CumSum", [_INTEGERS, np.array(1)], name="integers")], ids=str
)
def test_reduction_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        *(Case(name, [_POSITIVE, _axes(0, 2)], constants=(1,)) for name in _NAMES),
        Case("CumSum", [_X, np.array(1)], {"exclusive": 1, "reverse": 1}, constants=(1,)),
    ],
    ids=str,
)
def test_reduction_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    assert_gradients(case)
