import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serveprune.errors import InvalidArgument
from serveprune.oip.binary_tensors import checked_shape, decode_binary, encode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array

NUMERIC = [datatype for datatype in Datatype if datatype is not Datatype.BYTES]


@pytest.mark.parametrize(
    ("datatype", "format_", "values"),
    [
        (Datatype.BOOL, "<3?", (True, False, True)),
        (Datatype.UINT8, "<3B", (0, 7, 255)),
        (Datatype.UINT16, "<3H", (0, 7, 65535)),
        (Datatype.UINT32, "<3I", (0, 7, 2**32 - 1)),
        (Datatype.UINT64, "<3Q", (0, 7, 2**64 - 1)),
        (Datatype.INT8, "<3b", (-128, 7, 127)),
        (Datatype.INT16, "<3h", (-(2**15), 7, 2**15 - 1)),
        (Datatype.INT32, "<3i", (-(2**31), 7, 2**31 - 1)),
        (Datatype.INT64, "<3q", (-(2**63), 7, 2**63 - 1)),
        (Datatype.FP16, "<3e", (0.5, -2.0, 1024.0)),
        (Datatype.FP32, "<3f", (0.5, -2.0, 1024.0)),
        (Datatype.FP64, "<3d", (0.1, -2.0, 1e300)),
        (Datatype.BF16, "<3H", (0x3F80, 0, 0xFFFF)),
    ],
)
def test_numbers_have_the_little_endian_form_struct_gives_them(
    datatype: Datatype, format_: str, values: tuple[float, ...]
) -> None:
    wire = struct.pack(format_, *values)

    tensor = decode_binary(memoryview(wire), name="x", datatype=datatype, shape=[3, 1])

    assert tensor.shape == (3, 1)
    assert tensor.array.dtype == datatype.dtype
    assert tensor.array.ravel().tolist() == list(values)
    assert bytes(encode_binary(tensor.array, datatype)) == wire


def test_bytes_elements_carry_their_length_before_them() -> None:
    wire = b"\x02\x00\x00\x00hi" + b"\x00\x00\x00\x00" + b"\x03\x00\x00\x00\x00\xff\x00"

    tensor = decode_binary(memoryview(wire), name="t", datatype=Datatype.BYTES, shape=[3])

    assert tensor.array.tolist() == [b"hi", b"", b"\x00\xff\x00"]
    assert encode_binary(tensor.array, Datatype.BYTES) == wire


def test_text_elements_are_encoded_as_utf8() -> None:
    encoded = encode_binary(np.array(["é"], dtype=object), Datatype.BYTES)

    assert encoded == b"\x02\x00\x00\x00\xc3\xa9"


@given(
    hnp.arrays(
        dtype=st.sampled_from([datatype.dtype for datatype in NUMERIC]),
        shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    )
)
def test_any_number_tensor_survives_a_round_trip_bit_by_bit(array: Array) -> None:
    datatype = Datatype.of(array.dtype)
    wire = bytes(encode_binary(array, datatype))

    tensor = decode_binary(memoryview(wire), name="x", datatype=datatype, shape=array.shape)

    assert tensor.shape == array.shape
    assert tensor.array.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_any_bytes_tensor_survives_a_round_trip(values: list[bytes]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values

    wire = memoryview(bytes(encode_binary(array, Datatype.BYTES)))

    assert decode_binary(wire, name="x", datatype=Datatype.BYTES, shape=[len(values)]).array.tolist() == values


@given(st.binary(max_size=40), st.integers(0, 5))
def test_foreign_bytes_are_decoded_or_refused_but_never_crash(wire: bytes, elements: int) -> None:
    try:
        tensor = decode_binary(memoryview(wire), name="x", datatype=Datatype.BYTES, shape=[elements])
    except InvalidArgument:
        return
    assert encode_binary(tensor.array, Datatype.BYTES) == wire


def test_numbers_share_the_memory_they_came_in() -> None:
    wire = np.arange(6, dtype="<f4")

    tensor = decode_binary(wire.data.cast("B"), name="x", datatype=Datatype.FP32, shape=[2, 3])

    assert np.shares_memory(tensor.array, wire)


def test_numbers_are_aligned_when_they_came_in_the_middle_of_a_word() -> None:
    wire = b"\x00" + struct.pack("<2d", 1.5, 2.5)

    tensor = decode_binary(memoryview(wire)[1:], name="x", datatype=Datatype.FP64, shape=[2])

    assert tensor.array.flags.aligned
    assert tensor.array.tolist() == [1.5, 2.5]


def test_rows_are_encoded_in_order_when_the_array_is_transposed_or_big_endian() -> None:
    array = np.array([[1, 2], [3, 4]], dtype=">i4").T

    assert bytes(encode_binary(array, Datatype.INT32)) == struct.pack("<4i", 1, 3, 2, 4)


def test_encoding_refuses_when_the_array_is_not_of_the_datatype() -> None:
    with pytest.raises(TypeError):
        encode_binary(np.zeros(2, dtype=np.float32), Datatype.BF16)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([-1, 3], "got -1"),
        ([1.5], "got 1.5"),
        ([float("nan")], "got nan"),
        ([float("inf")], "got inf"),
        ([True], "got True"),
        (["2"], "got '2'"),
        ([None], "got None"),
        ([2**63], "got 9223372036854775808"),
        ([2**20, 2**20, 2], "at most"),
        ([0, 2**40, 2**40], "at most"),
        ([1] * 33, "33"),
    ],
)
def test_shape_is_refused_when_no_tensor_can_have_it(shape: list[object], message: str) -> None:
    with pytest.raises(InvalidArgument, match="'x'") as refusal:
        checked_shape(shape, name="x")
    assert message in refusal.value.message


def test_shape_accepts_whole_numbers_sent_as_floats() -> None:
    sizes = checked_shape([2.0, 3, np.int64(4).item()], name="x")

    assert sizes == (2, 3, 4)
    assert all(type(size) is int for size in sizes)


@pytest.mark.parametrize(
    ("datatype", "shape", "wire", "message"),
    [
        (Datatype.FP32, [2, 3], b"\0" * 20, "expected 24 bytes for FP32 of shape \\[2, 3\\], got 20"),
        (Datatype.FP32, [2**20, 2**20], b"\0" * 4, "expected 4398046511104 bytes"),
        (Datatype.FP32, [0, 3], b"\0", "expected 0 bytes"),
        (Datatype.BOOL, [2], b"\x01\x02", "expected BOOL elements of 0 or 1"),
        (Datatype.BYTES, [2**39], b"\0" * 8, "expected 549755813888 BYTES elements"),
        (Datatype.BYTES, [1], b"\x05\x00\x00\x00abc", "element 0 ends at byte 9, but the tensor has 7"),
        (Datatype.BYTES, [1], b"\xff\xff\xff\xff", "element 0 ends at byte 4294967299"),
        (Datatype.BYTES, [2], b"\x04\x00\x00\x00abcd", "element 1 ends at byte 12, but the tensor has 8"),
        (Datatype.BYTES, [1], b"\x01\x00\x00\x00ab", "1 bytes after the last"),
        (Datatype.BYTES, [], b"", "expected 1 BYTES elements"),
    ],
)
def test_bytes_are_refused_when_they_are_not_what_the_shape_asks_for(
    datatype: Datatype, shape: list[int], wire: bytes, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        decode_binary(memoryview(wire), name="x", datatype=datatype, shape=shape)
