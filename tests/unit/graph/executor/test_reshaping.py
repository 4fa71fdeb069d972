import numpy as np
import pytest
import torch
from unit.graph.executor.parity import Case, assert_parity, module

from serveprune.errors import InvalidArgument

_RANDOM = np.random.default_rng(0)


def _numbers(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_X = _numbers(2, 6, 4, 8)
_SHAPES = [
    Case("Identity", [_X]),
    Case("Reshape", [_X, _integers(2, -1)]),
    Case("Reshape", [_X, _integers(0, 3, 2, -1)], constants=(1,), name="zero-and-rest"),
    Case("Reshape", [_numbers(0, 3), _integers(3, 0)], {"allowzero": 1}),
    Case("Reshape", [_numbers(1, 1), _integers()], name="to-scalar"),
    Case("Flatten", [_X]),
    *(Case("Flatten", [_X], {"axis": axis}) for axis in (0, 3, 4, -1, -3)),
    Case("Transpose", [_X]),
    Case("Transpose", [_X], {"perm": [0, 2, 3, 1]}),
    Case("Squeeze", [_numbers(1, 3, 1, 2)]),
    Case("Squeeze", [_numbers(1, 3, 1, 2), _integers(-2)], constants=(1,)),
    Case("Squeeze", [_numbers(1, 3, 1, 2)], {"axes": [0, 2]}, opset=11),
    Case("Unsqueeze", [_numbers(2, 3), _integers(3, 0)]),
    Case("Unsqueeze", [_numbers(2, 3), _integers(-1, -4)], name="negative"),
    Case("Unsqueeze", [_numbers(2, 3)], {"axes": [0, 2]}, opset=11),
    Case("Expand", [_numbers(3, 1), _integers(2, 1, 4)]),
    Case("Expand", [_numbers(2, 3, 1), _integers(1, 4)], name="fewer-axes-than-data"),
    Case("Tile", [_numbers(2, 3), _integers(2, 3)]),
    Case("Concat", [_X, _X[:, :1]], {"axis": 1}),
    Case("Concat", [_X, _X, _X], {"axis": -1}),
    Case("Split", [_X], {"axis": 1}, outputs=(True, True), opset=13),
    Case("Split", [_X, _integers(1, 3, 2)], {"axis": 1}, outputs=(True, True, True), constants=(1,)),
    Case("Split", [_X], {"axis": 1, "split": [5, 1]}, outputs=(True, True), opset=11),
    Case("Split", [_numbers(7, 2)], {"num_outputs": 3}, outputs=(True, True, True)),
    Case("Split", [_numbers(2, 7)], {"num_outputs": 4, "axis": -1}, outputs=(True, True, True, True)),
    *(Case("DepthToSpace", [_numbers(2, 12, 3, 4)], {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Case("SpaceToDepth", [_numbers(2, 3, 6, 4)], {"blocksize": 2}),
]
_PADS = [
    *(Case("Pad", [_X, _integers(0, 1, 2, 0, 1, 0, 1, 3)], {"mode": mode}) for mode in ("constant", "reflect", "edge")),
    Case("Pad", [_X, _integers(0, 1, 2, 0, 1, 0, 1, 3)], {"mode": "wrap"}),
    Case("Pad", [_X, _integers(0, 1, 2, 0, 1, 0, 1, 3), np.array(2.5, np.float32)], constants=(1, 2)),
    Case("Pad", [_X, _integers(2, -1, 1, 3), None, _integers(-1, 1)], name="some-axes"),
    *(
        Case("Pad", [_X, _integers(0, -1, 2, -2, 0, 0, -1, 3)], {"mode": mode}, name=f"negative-{mode}")
        for mode in ("constant", "reflect", "edge")
    ),
    Case("Pad", [_X], {"pads": [0, 1, 0, 2, 0, 0, 1, 0], "value": 1.5}, opset=10),
    Case("Pad", [np.arange(6), _integers(1, 2)], name="integers"),
]


@pytest.mark.parametrize("case", [*_SHAPES, *_PADS], ids=str)
def test_reshaping_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


def test_pad_is_refused_when_its_mode_is_unknown() -> None:
    model = Case("Pad", [_X, _integers(0, 0, 0, 0, 0, 0, 0, 1)], {"mode": "mirror"}).model()
    with pytest.raises(InvalidArgument, match=r"expected a mode of Pad node out of .*; got mirror"):
        module(model)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_has_the_gradient_of_its_numbers_when_differentiated(mode: str) -> None:
    pads = _integers(0, 1, 2, -1, 1, 0, 1, 3)
    padding = module(Case("Pad", [_X, pads], {"mode": mode}, constants=(1,)).model())
    data = torch.from_numpy(_numbers(1, 2, 4, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: padding({"x0": x})["y0"], (data,))
