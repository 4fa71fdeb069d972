import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serveprune.errors import InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_tensors import decode_json_data, encode_json_data
from serveprune.oip.tensor import Array, Tensor

INTEGERS = [
    Datatype.UINT8,
    Datatype.UINT16,
    Datatype.UINT32,
    Datatype.UINT64,
    Datatype.INT8,
    Datatype.INT16,
    Datatype.INT32,
    Datatype.INT64,
]
WITH_JSON = [datatype for datatype in Datatype if datatype not in (Datatype.FP16, Datatype.BF16)]


def decode(data: object, datatype: Datatype, *shape: int) -> Array:
    tensor = decode_json_data(data, name="x", datatype=datatype, shape=shape)
    assert tensor.datatype is datatype
    assert tensor.array.dtype == datatype.dtype
    assert tensor.shape == shape
    return tensor.array


def refusal(data: object, datatype: Datatype, *shape: int) -> str:
    with pytest.raises(InvalidArgument, match="'x'") as caught:
        decode_json_data(data, name="x", datatype=datatype, shape=shape)
    return caught.value.message


@pytest.mark.parametrize(
    "data",
    [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [[1, 2.0, 3], [4.0, 5, 6]]],
)
@pytest.mark.parametrize("datatype", [*INTEGERS, Datatype.FP32, Datatype.FP64])
def test_data_is_the_same_flat_or_nested_and_with_whole_numbers_as_floats(data: list[Any], datatype: Datatype) -> None:
    assert decode(data, datatype, 2, 3).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_data_nests_as_deep_as_the_shape() -> None:
    assert decode([[[[7]], [[8]]]], Datatype.INT32, 1, 2, 1, 1).ravel().tolist() == [7, 8]


def test_scalar_shape_takes_one_element() -> None:
    assert decode([7], Datatype.INT32).item() == 7


@pytest.mark.parametrize(("data", "shape"), [([], (0,)), ([], (0, 3)), ([], (2, 0)), ([[], []], (2, 0))])
def test_empty_shapes_take_empty_data(data: list[Any], shape: tuple[int, ...]) -> None:
    assert decode(data, Datatype.FP32, *shape).size == 0


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_keep_every_digit_at_their_limits(datatype: Datatype) -> None:
    limits = np.iinfo(datatype.dtype)
    assert decode([int(limits.min), int(limits.max)], datatype, 2).tolist() == [limits.min, limits.max]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_are_refused_beyond_their_limits(datatype: Datatype) -> None:
    limits = np.iinfo(datatype.dtype)
    assert f"expected {limits.min} to {limits.max}" in refusal([0, int(limits.max) + 1], datatype, 2)
    assert "element 0" in refusal([int(limits.min) - 1], datatype, 1)
    assert "element 0" in refusal([float(2**64)], datatype, 1)


def test_truths_come_as_booleans_integers_or_floats() -> None:
    assert decode([True, False, 1, 0, 1.0, 0.0], Datatype.BOOL, 6).tolist() == [True, False] * 3


def test_text_is_held_as_utf8() -> None:
    assert decode(["größer", "", "靴"], Datatype.BYTES, 3).tolist() == ["größer".encode(), b"", "靴".encode()]


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        ([1.5], Datatype.INT64, (1,), "expected whole numbers for INT64, got 1.5 as element 0"),
        ([1, 0.1], Datatype.UINT8, (2,), "got 0.1 as element 1"),
        ([True], Datatype.INT32, (1,), "got a boolean as element 0"),
        ([1.0, True], Datatype.FP32, (2,), "got a boolean as element 1"),
        (["1"], Datatype.FP32, (1,), "got a string as element 0"),
        ([None], Datatype.FP64, (1,), "got null as element 0"),
        ([{}], Datatype.FP64, (1,), "got an object as element 0"),
        ([1, [2]], Datatype.INT8, (2,), "got an array as element 1"),
        ([2], Datatype.BOOL, (1,), "got 2 as element 0"),
        (["true"], Datatype.BOOL, (1,), "got a string as element 0"),
        ([1], Datatype.BYTES, (1,), "expected strings for BYTES, got a number"),
        ([1e39], Datatype.FP32, (1,), "1e+39, element 0, is too large for FP32"),
        ([1.0], Datatype.FP16, (1,), "FP16 has no JSON form"),
        ([1.0], Datatype.BF16, (1,), "BF16 has no JSON form"),
        (None, Datatype.FP32, (1,), "expected an array as data, got null"),
        (1.0, Datatype.FP32, (), "expected an array as data, got a number"),
        ({"b64": ""}, Datatype.BYTES, (1,), "expected an array as data, got an object"),
        ([1, 2], Datatype.FP32, (3,), "expected 3 elements for shape [3], got 2"),
        ([1, 2, 3, 4], Datatype.FP32, (3,), "expected 3 elements for shape [3], got 4"),
        ([], Datatype.FP32, (1,), "expected 1 elements for shape [1], got 0"),
        ([1], Datatype.FP32, (0,), "expected 0 elements for shape [0], got 1"),
        ([1], Datatype.FP32, (2**20, 2**20), "expected 1099511627776 elements"),
        ([[1, 2, 3]], Datatype.FP32, (3,), "expected 3 elements for shape [3], got 1"),
        ([[1, 2], [3, 4], [5, 6]], Datatype.FP32, (2, 3), "arrays of 2 at axis 0"),
        ([[1, 2], [3]], Datatype.FP32, (2, 2), "arrays of 2 at axis 1"),
        ([[1, 2], 3], Datatype.FP32, (2, 2), "arrays of 2 at axis 1"),
        ([[1], [2], [3], [4]], Datatype.FP32, (2, 2), "arrays of 2 at axis 0"),
        ([[[1]], [[2]]], Datatype.FP32, (2, 1), "got an array as element 0"),
    ],
)
def test_data_is_refused_when_it_is_not_what_datatype_and_shape_say(
    data: object, datatype: Datatype, shape: tuple[int, ...], message: str
) -> None:
    assert message in refusal(data, datatype, *shape)


def test_deeply_nested_data_is_refused_without_running_out_of_stack() -> None:
    data = orjson.loads("[" * 1000 + "]" * 1000)

    assert "axis" in refusal(data, Datatype.FP32, 2, 2)
    assert "axis" in refusal(data, Datatype.FP32, 0, 0)


def element(datatype: Datatype) -> st.SearchStrategy[Any]:
    if datatype is Datatype.BYTES:
        return st.text(max_size=5).map(str.encode)
    return hnp.from_dtype(datatype.dtype, allow_nan=False, allow_infinity=False)


@given(st.data())
def test_any_tensor_survives_a_round_trip_through_json(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(WITH_JSON))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    count = math.prod(shape)
    array = np.empty(count, dtype=datatype.dtype)
    array[:] = data.draw(st.lists(element(datatype), min_size=count, max_size=count))
    array = array.reshape(shape)

    text = orjson.dumps(encode_json_data(Tensor("x", datatype, array)), option=orjson.OPT_SERIALIZE_NUMPY)
    decoded = decode_json_data(orjson.loads(text), name="x", datatype=datatype, shape=shape)

    assert decoded.shape == shape
    assert decoded.array.tolist() == array.tolist()


def test_rows_are_written_in_order_when_the_array_is_transposed_or_big_endian() -> None:
    array = np.array([[1, 2], [3, 4]], dtype=">i4").T

    encoded = encode_json_data(Tensor("x", Datatype.INT32, array))

    assert orjson.dumps(encoded, option=orjson.OPT_SERIALIZE_NUMPY) == b"[1,3,2,4]"


def test_nan_and_infinity_are_written_as_null() -> None:
    encoded = encode_json_data(Tensor("x", Datatype.FP32, np.array([1.5, math.nan, math.inf], dtype=np.float32)))

    assert orjson.dumps(encoded, option=orjson.OPT_SERIALIZE_NUMPY) == b"[1.5,null,null]"


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("y", Datatype.FP16, np.zeros(1, dtype=np.float16)),
        Tensor("y", Datatype.BF16, np.zeros(1, dtype=np.uint16)),
        Tensor("y", Datatype.BYTES, np.array([b"ok", b"\xff"], dtype=object)),
    ],
)
def test_output_is_refused_when_json_cannot_say_it(tensor: Tensor) -> None:
    with pytest.raises(InvalidArgument, match=r"output 'y': .*binary_data"):
        encode_json_data(tensor)
