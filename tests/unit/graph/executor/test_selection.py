import numpy as np
import pytest
import torch
from unit.graph.executor.parity import Case, assert_parity, module

_RANDOM = np.random.default_rng(0)
_X = _RANDOM.standard_normal((3, 4, 5)).astype(np.float32)
_LAST = np.iinfo(np.int64).max
_FIRST = np.iinfo(np.int64).min


def _integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _updates(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


_REDUCTIONS = ("none", "add", "mul", "max", "min")
_GATHERED = [
    Case("Gather", [_X, np.array([[0, 2], [-1, 1]], np.int32)]),
    Case("Gather", [_X, np.array(-2)], {"axis": 1}, name="scalar"),
    Case("Gather", [_X, _integers(4, 0, 0)], {"axis": -1}, constants=(0,), name="table"),
    Case("Gather", [np.arange(6), np.array(3)], constants=(1,), name="single-size"),
    Case("GatherElements", [_X, _RANDOM.integers(-4, 4, (3, 2, 5))], {"axis": 1}),
    Case("GatherElements", [_X, _RANDOM.integers(-5, 5, (2, 3, 4))], {"axis": -1}),
    Case("GatherND", [_X, np.array([[0, 1], [-1, 3]])]),
    Case("GatherND", [_X, np.array([[0, 1, 2], [2, 3, -1]])], name="single-numbers"),
    Case("GatherND", [_X, np.array([[[1]], [[0]], [[-1]]])], {"batch_dims": 1}),
    Case("GatherND", [_X, np.array([[[1], [0], [2], [3]]] * 3)], {"batch_dims": 2}),
]
_SCATTERED = [
    *(
        Case(
            "ScatterElements",
            [_X, _integers(0, -1, 0, 2).reshape(2, 2, 1), _updates(2, 2, 1)],
            {"axis": 1, "reduction": reduction},
            opset=18,
        )
        for reduction in _REDUCTIONS[1:]
    ),
    Case("ScatterElements", [_X, np.array([[[0, -1]], [[3, 2]]]), _updates(2, 1, 2)], {"axis": -1}),
    Case("Scatter", [_X, np.array([[[0, 1]]]), _updates(1, 1, 2)], {"axis": 2}, opset=10),
    Case("ScatterND", [_X, np.array([[2], [-3]]), _updates(2, 4, 5)]),
    *(
        Case("ScatterND", [_X, np.array([[2, 1], [0, -1], [2, 1]]), _updates(3, 5)], {"reduction": reduction}, opset=18)
        for reduction in _REDUCTIONS[1:]
    ),
    Case("ScatterND", [_X, np.array([[[2, 1, 0], [0, 0, 1]]]), _updates(1, 2)], name="single-numbers"),
]
_SLICED = [
    Case("Slice", [_X, _integers(1), _integers(_LAST)]),
    Case("Slice", [_X, _integers(1, -3), _integers(100, -1), _integers(-1, 0)], constants=(1, 2, 3)),
    Case("Slice", [_X, _integers(-1, 4), _integers(_FIRST, 0), _integers(0, 2), _integers(-1, -2)], name="backwards"),
    Case("Slice", [_X, _integers(0, 0), _integers(3, _LAST), _integers(1, 2), _integers(2, 3)], name="steps"),
    Case("Slice", [_X, _integers(3), _integers(1), _integers(1), _integers(1)], name="empty"),
    Case("Slice", [_X, _integers(1), _integers(3), _integers(1), _integers(-1)], name="empty-backwards"),
    Case("Slice", [_X], {"starts": [1, 0], "ends": [3, -1], "axes": [1, 2]}, opset=9),
    Case("Slice", [_X], {"starts": [1, 0], "ends": [3, -1]}, opset=9),
]
_OTHERS = [
    Case("OneHot", [_integers(0, 2, -1, 9), np.array(4), np.array([0, 1], np.float32)]),
    Case("OneHot", [np.array([[0, 2]]), np.array([3]), np.array([-1, 5], np.float32)], {"axis": 0}, constants=(1,)),
    Case("TopK", [_X, _integers(3)], outputs=(True, True)),
    Case("TopK", [_X, _integers(2)], {"axis": 1, "largest": 0}, outputs=(True, True)),
    Case("TopK", [np.array([[1, 3, 3, 1, 3]], np.float32), _integers(4)], outputs=(True, True), name="ties"),
    Case("TopK", [_X], {"k": 2}, outputs=(True, True), opset=9),
    Case("NonZero", [np.array([[0, 1, 2], [3, 0, 0]], np.float32)]),
    Case("Compress", [_X, np.array([True, False, True])], {"axis": 1}),
    Case("Compress", [_X, np.array([False, True, True, False, True])]),
    Case("Trilu", [_X]),
    Case("Trilu", [_X, np.array(-1)], {"upper": 0}),
    Case("Trilu", [np.ones((3, 4), bool), np.array(1)], constants=(1,)),
]


@pytest.mark.parametrize("case", [*_GATHERED, *_SCATTERED, *_SLICED, *_OTHERS], ids=str)
def test_selection_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("Gather", [_X, _integers(0, 2, -1, 0)], {"axis": 1}, constants=(1,)),
        Case("GatherElements", [_X, _RANDOM.integers(-4, 4, (3, 2, 5))], {"axis": 1}, constants=(1,)),
        Case("GatherND", [_X, np.array([[[1]], [[0]], [[-1]]])], {"batch_dims": 1}, constants=(1,)),
        Case("Slice", [_X, _integers(-1), _integers(_FIRST), _integers(2), _integers(-2)], constants=(1, 2, 3, 4)),
        Case("TopK", [_X, _integers(2)], constants=(1,), outputs=(True, True)),
        Case("ScatterND", [_X, np.array([[2, 1], [0, -1]]), _updates(2, 5)], {"reduction": "mul"}, constants=(1, 2)),
    ],
    ids=str,
)
def test_selection_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    selection = module(case.model())
    data = torch.from_numpy(_X).double().requires_grad_()
    others = {name: torch.from_numpy(array) for name, array in case.feeds().items() if name != "x0"}
    # The constants of a graph of its own dtype meet doubles here.
    assert torch.autograd.gradcheck(lambda x: selection.double()({"x0": x, **others})["y0"], (data,))


def test_gather_learns_its_table_when_the_table_is_a_constant() -> None:
    embedding = module(Case("Gather", [_X[0], _integers(1, 1, 3)], constants=(0,)).model())
    embedding({"x1": torch.tensor([1, 1, -1])})["y0"].sum().backward()
    assert list(embedding.weights) == ["x0"]
    table = embedding.weights["x0"].grad
    assert table is not None
    np.testing.assert_array_equal(table[:, 0].numpy(), [0, 2, 0, 1])
