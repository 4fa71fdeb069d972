"""The JSON form of one tensor's ``data``."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from serveprune.errors import InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.parameters import kind
from serveprune.oip.tensor import Array, Tensor

_WITHOUT_JSON = (Datatype.FP16, Datatype.BF16)
_NUMBERS = {int, float}
_SAFE = 1e38


def decode_json_data(data: object, *, name: str, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
    """Decode ``data``, flat or nested as ``shape`` says, element by element exactly or not at all.

    ``data`` is what the JSON parser left: lists, numbers, strings, booleans. ``shape`` is already checked; how
    many elements it makes is compared before anything is allocated.

    Raises:
        InvalidArgument: The datatype has no JSON form, or the elements are not what datatype and shape say.
    """
    if datatype in _WITHOUT_JSON:
        raise InvalidArgument(f"input {name!r}: {datatype} has no JSON form; send it as binary tensor data")
    elements = _flatten(data, name=name, shape=shape)
    if datatype is Datatype.BYTES:
        array = _decode_texts(elements, name=name)
    elif datatype is Datatype.BOOL:
        array = _decode_truths(elements, name=name)
    elif datatype in (Datatype.FP32, Datatype.FP64):
        array = _decode_floats(elements, name=name, datatype=datatype)
    else:
        array = _decode_integers(elements, name=name, datatype=datatype)
    return Tensor(name, datatype, array.reshape(shape))


def encode_json_data(tensor: Tensor) -> Array | list[str]:
    """Return the elements flat, row by row, in a form that orjson writes.

    JSON has no NaN and no infinity: orjson writes ``null`` for them. Who must tell them apart asks for
    binary data.

    Raises:
        InvalidArgument: The datatype has no JSON form, or a BYTES element is no UTF-8.
    """
    if tensor.datatype in _WITHOUT_JSON:
        raise InvalidArgument(f"output {tensor.name!r}: {tensor.datatype} has no JSON form; {_ASK_FOR_BINARY}")
    if tensor.datatype is Datatype.BYTES:
        return [_text(element, name=tensor.name) for element in tensor.array.ravel()]
    # orjson takes contiguous arrays of native byte order only.
    return np.ascontiguousarray(tensor.array.astype(tensor.datatype.dtype, casting="equiv", copy=False)).reshape(-1)


_ASK_FOR_BINARY = 'ask for it in binary form (its parameter "binary_data": true)'


def _flatten(data: object, *, name: str, shape: Sequence[int]) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidArgument(f"input {name!r}: expected an array as data, got {kind(data)}")
    expected = math.prod(shape)
    if len(shape) < 2 or not data or not isinstance(data[0], list):
        if len(data) != expected:
            raise InvalidArgument(
                f"input {name!r}: expected {expected} elements for shape {list(shape)}, got {len(data)}"
            )
        return data
    rows: list[Any] = [data]
    for axis, size in enumerate(shape):
        if any(type(row) is not list or len(row) != size for row in rows):
            raise InvalidArgument(
                f"input {name!r}: expected data flat or nested as shape {list(shape)} says, "
                f"got something else than arrays of {size} at axis {axis}"
            )
        rows = list(chain.from_iterable(rows))
    return rows


def _check_kinds(elements: list[Any], kinds: set[type], *, name: str, datatype: Datatype, expected: str) -> set[type]:
    found = set(map(type, elements))
    if not found <= kinds:
        index = next(index for index, element in enumerate(elements) if type(element) not in kinds)
        raise InvalidArgument(
            f"input {name!r}: expected {expected} for {datatype}, got {kind(elements[index])} as element {index}"
        )
    return found


def _decode_texts(elements: list[Any], *, name: str) -> Array:
    _check_kinds(elements, {str}, name=name, datatype=Datatype.BYTES, expected="strings")
    array = np.empty(len(elements), dtype=object)
    array[:] = [element.encode() for element in elements]
    return array


def _decode_truths(elements: list[Any], *, name: str) -> Array:
    _check_kinds(elements, {bool, int, float}, name=name, datatype=Datatype.BOOL, expected="true, false, 1 or 0")
    for index, element in enumerate(elements):
        if element not in (0, 1):
            raise InvalidArgument(f"input {name!r}: expected true, false, 1 or 0, got {element!r} as element {index}")
    return np.array(elements, dtype=np.bool_)


def _decode_floats(elements: list[Any], *, name: str, datatype: Datatype) -> Array:
    _check_kinds(elements, _NUMBERS, name=name, datatype=datatype, expected="numbers")
    wide: Array = np.fromiter(elements, dtype=np.float64, count=len(elements))
    # Too small to overflow in either type; the parser lets no NaN through. Most tensors leave here.
    if not elements or (np.maximum.reduce(wide) < _SAFE and np.minimum.reduce(wide) > -_SAFE):
        return wide.astype(datatype.dtype, copy=False)
    with np.errstate(over="ignore"):
        array: Array = wide.astype(datatype.dtype)
    # The parser lets no infinity through, so one that is here has overflowed.
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidArgument(f"input {name!r}: {elements[index]!r}, element {index}, is too large for {datatype}")
    return array


def _decode_integers(elements: list[Any], *, name: str, datatype: Datatype) -> Array:
    if float in _check_kinds(elements, _NUMBERS, name=name, datatype=datatype, expected="whole numbers"):
        for index, element in enumerate(elements):
            if element != element // 1:
                raise InvalidArgument(
                    f"input {name!r}: expected whole numbers for {datatype}, got {element!r} as element {index}"
                )
        elements = list(map(int, elements))
    try:
        return np.array(elements, dtype=datatype.dtype)
    except OverflowError:
        limits = np.iinfo(datatype.dtype)
        index = next(i for i, element in enumerate(elements) if not limits.min <= element <= limits.max)
        raise InvalidArgument(
            f"input {name!r}: expected {limits.min} to {limits.max} for {datatype}, "
            f"got {elements[index]} as element {index}"
        ) from None


def _text(element: bytes | str, *, name: str) -> str:
    try:
        return element if isinstance(element, str) else element.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"output {name!r}: an element is no UTF-8 text ({error.reason} at byte {error.start}); {_ASK_FOR_BINARY}"
        ) from None
