"""The binary form of one tensor, the same in the HTTP extension and in gRPC's raw contents."""

import math
from collections.abc import Sequence

import numpy as np

from serveprune.errors import InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, Tensor

_MAX_AXES = 32
_MAX_ELEMENTS = 2**40
_LENGTH_BYTES = 4
"""Each BYTES element is preceded by its length, unsigned and little-endian."""


def checked_shape(shape: Sequence[object], *, name: str) -> tuple[int, ...]:
    """Return the shape a client declared for tensor ``name``, fit to be compared with its data.

    Whole numbers may come as floats (``5.0``): the specification's generated REST client sends them so.

    Raises:
        InvalidArgument: A size is no whole number or negative, or the shape is larger than any tensor.
    """
    if len(shape) > _MAX_AXES:
        raise InvalidArgument(f"input {name!r}: expected a shape of at most {_MAX_AXES} axes, got {len(shape)}")
    sizes = tuple(shape)
    elements = 1
    for size in sizes:
        if type(size) is not int or not 0 <= size <= _MAX_ELEMENTS:
            return checked_shape([_checked_size(size, name=name) for size in shape], name=name)
        # An empty axis makes the product zero, but numpy multiplies the others nevertheless.
        elements *= size or 1
    if elements > _MAX_ELEMENTS:
        raise InvalidArgument(
            f"input {name!r}: expected a shape of at most {_MAX_ELEMENTS} elements, got {list(sizes)}"
        )
    return sizes  # type: ignore[return-value]


def decode_binary(buffer: memoryview, *, name: str, datatype: Datatype, shape: Sequence[int]) -> Tensor:
    """Decode one tensor; numbers are not copied, so the array is read-only and keeps ``buffer`` alive.

    Raises:
        InvalidArgument: The bytes are not what datatype and shape ask for.
    """
    sizes = checked_shape(shape, name=name)
    elements = math.prod(sizes)
    if datatype is Datatype.BYTES:
        return Tensor(name, datatype, _decode_elements(buffer, name=name, elements=elements).reshape(sizes))
    expected_bytes = elements * datatype.dtype.itemsize
    if buffer.nbytes != expected_bytes:
        raise InvalidArgument(
            f"input {name!r}: expected {expected_bytes} bytes for {datatype} of shape {_shown(sizes)}, "
            f"got {buffer.nbytes}"
        )
    array: Array = np.frombuffer(buffer, dtype=datatype.dtype)
    if datatype is Datatype.BOOL and elements and int(array.view(np.uint8).max()) > 1:
        raise InvalidArgument(f"input {name!r}: expected BOOL elements of 0 or 1, got another byte")
    if not array.flags.aligned:
        # A tensor may begin anywhere in an HTTP body; backends read whole words.
        array = array.copy()
    return Tensor(name, datatype, array.reshape(sizes))


def encode_binary(array: Array, datatype: Datatype) -> bytes | memoryview:
    """Encode one tensor, row by row; without a copy where its memory already has the wire's form."""
    if datatype is Datatype.BYTES:
        parts: list[bytes] = []
        for element in array.reshape(-1):
            value = element.encode() if isinstance(element, str) else bytes(element)
            parts += (len(value).to_bytes(_LENGTH_BYTES, "little"), value)
        return b"".join(parts)
    wire = np.ascontiguousarray(array.astype(datatype.dtype, casting="equiv", copy=False))
    # A memoryview with an empty axis cannot be cast.
    return wire.data.cast("B") if wire.size else b""


def _checked_size(size: object, *, name: str) -> int:
    if type(size) is int and 0 <= size <= _MAX_ELEMENTS:
        return size
    whole = isinstance(size, int | float) and not isinstance(size, bool) and size == size // 1
    if not whole or not 0 <= size <= _MAX_ELEMENTS:  # type: ignore[operator]
        raise InvalidArgument(f"input {name!r}: expected sizes from 0 to {_MAX_ELEMENTS} in its shape, got {size!r}")
    return int(size)  # type: ignore[call-overload, no-any-return]


def _decode_elements(buffer: memoryview, *, name: str, elements: int) -> Array:
    # Checked before anything is allocated: the shape is only a client's claim.
    if elements * _LENGTH_BYTES > buffer.nbytes:
        raise InvalidArgument(
            f"input {name!r}: expected {elements} BYTES elements, each after its length in "
            f"{_LENGTH_BYTES} bytes, got {buffer.nbytes} bytes in all"
        )
    array = np.empty(elements, dtype=object)
    position = 0
    for index in range(elements):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(buffer[position:start], "little")
        if start > buffer.nbytes or position > buffer.nbytes:
            raise InvalidArgument(
                f"input {name!r}: BYTES element {index} ends at byte {max(start, position)}, "
                f"but the tensor has {buffer.nbytes}"
            )
        array[index] = bytes(buffer[start:position])
    if position != buffer.nbytes:
        raise InvalidArgument(
            f"input {name!r}: expected {elements} BYTES elements, got {buffer.nbytes - position} bytes after the last"
        )
    return array


def _shown(sizes: Sequence[int]) -> str:
    return f"[{', '.join(map(str, sizes))}]"
