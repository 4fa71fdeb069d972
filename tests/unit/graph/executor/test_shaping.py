import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from unit.graph.executor.parity import Case, assert_parity, module

from serveprune.errors import InvalidArgument

_RANDOM = np.random.default_rng(0)
_X = (4 * _RANDOM.standard_normal((2, 3, 4))).astype(np.float32)
_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64)

_CASES = [
    Case("Shape", [_X]),
    *(Case("Shape", [_X], {"start": start, "end": end}) for start, end in ((1, 3), (-2, -1), (-9, 9), (2, 1))),
    Case("Size", [_X]),
    Case("Range", [np.array(1), np.array(8), np.array(3)]),
    Case("Range", [np.array(8), np.array(1), np.array(-3)], constants=(0, 1, 2), name="down"),
    Case("Range", [np.array(2), np.array(1), np.array(1)], name="empty"),
    Case("Range", [np.array(0.5, np.float32), np.array(2, np.float32), np.array(0.25, np.float32)], name="floats"),
    Case("ConstantOfShape", [np.array([2, 3])]),
    Case("ConstantOfShape", [np.array([2])], {"value": numpy_helper.from_array(np.array([7]))}),
    Case("ConstantOfShape", [np.array([2])], {"value": numpy_helper.from_array(np.array([True]))}, name="booleans"),
    Case("ConstantOfShape", [np.array([], np.int64)], name="scalar"),
    Case("EyeLike", [_X[0]], {"k": 1}),
    Case("EyeLike", [_X[0]], {"k": -1, "dtype": TensorProto.INT64}),
    *(Case("Cast", [_X], {"to": to}) for to in _TYPES),
    *(Case("Cast", [np.array([0, 2, -3])], {"to": to}) for to in (*_TYPES, TensorProto.BOOL)),
    Case("CastLike", [_X, np.array([1], np.int32)]),
    Case("Dropout", [_X], {"ratio": 0.3}, opset=10),
    Case("Dropout", [_X, np.array(0.3, np.float32)], constants=(1,), outputs=(True, True)),
]


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_shaping_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("opset", [10, 21])
def test_dropout_drops_its_share_and_keeps_the_mean_when_training(mask: bool, opset: int) -> None:
    ones = np.ones(20000, np.float32)
    outputs = (True, mask)
    case = (
        Case("Dropout", [ones], {"ratio": 0.25}, opset=opset, outputs=outputs)
        if opset < 12
        else Case("Dropout", [ones, np.array(0.25, np.float32)], constants=(1,), opset=opset, outputs=outputs)
    )
    torch.manual_seed(0)
    made = module(case.model()).train()({"x0": torch.from_numpy(ones)})
    dropped = made["y0"] == 0
    assert 0.23 < float(dropped.float().mean()) < 0.27
    torch.testing.assert_close(made["y0"][~dropped], torch.full_like(made["y0"][~dropped], 4 / 3))
    if mask:
        assert torch.equal(made["y1"], ~dropped)


def test_cast_is_refused_when_torch_lacks_the_dtype() -> None:
    with pytest.raises(InvalidArgument, match="Cast node makes STRING, which torch has no dtype for"):
        module(Case("Cast", [_X], {"to": TensorProto.STRING}).model())
