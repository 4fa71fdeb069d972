import io
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.handlers.torchserve.tensor_files import (
    is_npy,
    is_safetensors,
    npy_of,
    safetensors_of,
    tensor_of_npy,
    tensors_of_safetensors,
)
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array

NUMBERS = ["?", "u1", "<u2", ">u2", "<u4", "<u8", "i1", "<i2", "<i4", ">i4", "<i8", "<f2", "<f4", ">f4", "<f8", ">f8"]


def saved(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_header(text: str, data: bytes = b"", *, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin-1") + data


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(1,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidArgument, match="'x'") as caught:
        tensor_of_npy(content, name="x")
    return caught.value.message


@given(
    array=st.sampled_from(NUMBERS).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    ),
    by_columns=st.booleans(),
)
def test_npy_is_what_numpy_saved(array: Array, by_columns: bool) -> None:
    tensor = tensor_of_npy(saved(np.asarray(array, order="F" if by_columns else "C")), name="x")

    assert tensor.name == "x"
    assert tensor.array.dtype == array.dtype.newbyteorder("=")
    assert tensor.array.shape == array.shape
    assert tensor.array.tobytes() == np.asarray(array, dtype=tensor.array.dtype, order="C").tobytes()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (header(), 1),
        (header(), 2),
        (header(), 3),
        ('{"shape":(1,),"fortran_order":False,"descr":"<f4"}', 1),
        (header(shape="( 1 , )"), 1),
        (header().ljust(118) + "\n", 1),
    ],
)
def test_npy_header_may_be_written_in_any_way_that_means_the_same(text: str, version: int) -> None:
    assert tensor_of_npy(with_header(text, struct.pack("<f", 2.5), version=version), name="x").array.tolist() == [2.5]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (with_header(header("'|O'"), b"\x80\x04N."), "numbers or booleans"),
        (with_header(header("'<U1'"), b"a\0\0\0"), "numbers or booleans"),
        (with_header(header("[('a', '<f4')]"), b"1234"), "numbers or booleans"),
        (with_header(header("'|V0'")), "numbers or booleans"),
        (with_header(header(shape="(-1, -4)"), b"1" * 16), "damaged"),
        (with_header(header(shape="(2,)"), b"1234"), "expected 8 bytes"),
        (with_header(header("'>f4'", shape="(2,)"), b"12345"), "no whole number"),
        (with_header(header(shape="(999999999999999999999999, 9)"), b"1234"), "shape"),
        (with_header(header(shape=f"({'1, ' * 40})"), b"1234"), "32 axes"),
        (with_header(header(order="1"), b"1234"), "damaged"),
        (with_header("(" * 60_000), "numbers or booleans"),
        (with_header("{'descr': " + "-" * 60_000), "numbers or booleans"),
        (with_header(header("'|b1'"), b"\x02"), "0 or 1"),
        (b"\x93NUMPY", "damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "damaged"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{}", "damaged"),
    ],
)
def test_npy_that_is_none_of_numbers_is_refused_with_the_reason(content: bytes, expected: str) -> None:
    assert expected in refusal(content)


@given(rest=st.binary(max_size=200))
def test_npy_of_any_bytes_is_read_or_refused(rest: bytes) -> None:
    for content in (b"\x93NUMPY" + rest, with_header(header(), rest)):
        try:
            tensor_of_npy(content, name="x")
        except InvalidArgument:
            continue


@pytest.mark.parametrize("dtype", [dtype for dtype in NUMBERS if ">" not in dtype])
def test_safetensors_are_what_their_own_package_saved(dtype: str) -> None:
    arrays = {"b": np.arange(6).reshape(2, 3).astype(dtype), "a": np.ones((), dtype)}

    found = {tensor.name: tensor for tensor in tensors_of_safetensors(safetensors.numpy.save(arrays))}

    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].datatype is Datatype.of(array.dtype)
        np.testing.assert_array_equal(found[name].array, array, strict=True)


def test_bfloat16_of_safetensors_is_its_bits() -> None:
    text = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    # 1.0 and -2.0: sign, 8 bits of exponent, 7 of mantissa.
    content = struct.pack("<Q", len(text)) + text + struct.pack("<HH", 0x3F80, 0xC000)

    (tensor,) = tensors_of_safetensors(content)

    assert tensor.datatype is Datatype.BF16
    assert tensor.array.tolist() == [0x3F80, 0xC000]


@pytest.mark.parametrize(
    "text",
    [
        b'{"x":{"dtype":"F32","shape":[999],"data_offsets":[0,3996]}}',
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
        b'{"x":5}',
        b'{"x',
    ],
)
def test_safetensors_that_are_damaged_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument):
        tensors_of_safetensors(struct.pack("<Q", len(text)) + text + b"1234")


@pytest.mark.parametrize(
    ("content", "npy", "tensors"),
    [
        (saved(np.ones(1)), True, False),
        (safetensors.numpy.save({"x": np.ones(1)}), False, True),
        (b'{"x": [1, 2, 3, 4, 5, 6]}', False, False),
        (b"hello {world} of some text", False, False),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", False, False),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF{", False, False),
        (b"", False, False),
        (b"\0" * 20, False, False),
    ],
)
def test_files_are_known_by_how_they_begin(content: bytes, npy: bool, tensors: bool) -> None:
    assert (is_npy(content), is_safetensors(content)) == (npy, tensors)
    assert (is_npy(bytearray(content)), is_safetensors(bytearray(content))) == (npy, tensors)


@given(content=st.binary(max_size=100))
def test_safetensors_of_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        tensors_of_safetensors(content)
    except ServePruneError:
        return


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.array(3, dtype=np.int64), np.ones((0, 2))])
def test_files_that_are_written_are_read_by_their_own_packages(array: Any) -> None:
    np.testing.assert_array_equal(np.load(io.BytesIO(npy_of(array))), array, strict=True)
    np.testing.assert_array_equal(safetensors.numpy.load(safetensors_of({"y": array}))["y"], array, strict=True)
