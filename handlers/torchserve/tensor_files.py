"""Tensors in the files that numpy and safetensors write, read from bytes that anybody may have sent."""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from serveprune.errors import InvalidArgument, MissingExtra
from serveprune.oip.binary_tensors import checked_shape, decode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, Tensor

Content = bytes | bytearray

_NPY = b"\x93NUMPY"
_MOST_HEADER_BYTES = 2**16
_DESCRIPTION = re.compile(r"""['"]descr['"]\s*:\s*['"](?P<order>[<>|=]?)(?P<element>b1|[ui][1248]|f[248])['"]""")
_BY_COLUMNS = re.compile(r"""['"]fortran_order['"]\s*:\s*(?P<by_columns>True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\((?P<sizes>[\d\s,]{0,1000})\)""")
_LONGEST_SIZE = 18
"""Digits of an axis."""

_OF_SAFETENSORS = {
    "BOOL": Datatype.BOOL, "U8": Datatype.UINT8, "U16": Datatype.UINT16, "U32": Datatype.UINT32,
    "U64": Datatype.UINT64, "I8": Datatype.INT8, "I16": Datatype.INT16, "I32": Datatype.INT32, "I64": Datatype.INT64,
    "F16": Datatype.FP16, "BF16": Datatype.BF16, "F32": Datatype.FP32, "F64": Datatype.FP64,
}  # fmt: skip


def is_npy(content: Content) -> bool:
    """Tell whether bytes begin as a `.npy` file does."""
    return content.startswith(_NPY)


def is_safetensors(content: Content) -> bool:
    """Tell whether bytes begin as a safetensors file does: with the length of a JSON object, and that object."""
    header_bytes = int.from_bytes(content[:8], "little")
    return len(content) > 8 and 1 < header_bytes <= len(content) - 8 and content[8:9] == b"{"


def tensor_of_npy(content: Content, *, name: str) -> Tensor:
    """Return the tensor of a `.npy` file, under the name of an input.

    Not by numpy, which evaluates the header as Python: a few thousand brackets are too much for its parser.

    Raises:
        InvalidArgument: The file is damaged, or holds anything but numbers.
    """
    header, data = _divided_npy(content, name=name)
    description, order, shape = (pattern.search(header) for pattern in (_DESCRIPTION, _BY_COLUMNS, _SHAPE))
    if description is None:
        raise InvalidArgument(f"input {name!r}: expected numbers or booleans in the .npy file, got {header[:80]!r}")
    if order is None or shape is None:
        raise _damaged(name, f"its header is {header[:80]!r}")
    sizes = checked_shape([int(size[:_LONGEST_SIZE]) for size in re.findall(r"\d+", shape["sizes"])], name=name)
    datatype = Datatype.of(np.dtype(description["element"]))
    if description["order"] == ">" and datatype.dtype.itemsize > 1:
        if data.nbytes % datatype.dtype.itemsize:
            raise _damaged(name, f"{data.nbytes} bytes are no whole number of elements")
        data = memoryview(np.frombuffer(data, datatype.dtype).byteswap().tobytes())
    by_columns = order["by_columns"] == "True"
    tensor = decode_binary(data, name=name, datatype=datatype, shape=sizes[::-1] if by_columns else sizes)
    return Tensor(name, datatype, np.asarray(tensor.array.T, order="C")) if by_columns else tensor


def tensors_of_safetensors(content: Content) -> list[Tensor]:
    """Return the tensors of a safetensors file, whose names are those of inputs.

    Raises:
        InvalidArgument: The file is damaged, or holds what the protocol has no datatype for.
        MissingExtra: The package that reads it is not installed.
    """
    package = _safetensors()
    try:
        # Its own parser checks that the tensors are what the file says, and overlap nowhere.
        found = package.deserialize(bytes(content))
    except package.SafetensorError as error:
        raise InvalidArgument(f"expected a safetensors file, got a damaged one: {error}") from None
    tensors = []
    for name, each in found:
        datatype = _OF_SAFETENSORS.get(each["dtype"])
        if datatype is None:
            raise InvalidArgument(f"input {name!r}: the protocol has no datatype for {each['dtype']} of safetensors")
        data = memoryview(each["data"])
        tensors.append(decode_binary(data, name=name, datatype=datatype, shape=each["shape"]))
    return tensors


def npy_of(array: Array) -> bytes:
    """Return the `.npy` file of an array of numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def safetensors_of(arrays: Mapping[str, Array]) -> bytes:
    """Return the safetensors file of arrays of numbers by name.

    Raises:
        MissingExtra: The package that writes it is not installed.
    """
    _safetensors()
    from safetensors.numpy import save

    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _divided_npy(content: Content, *, name: str) -> tuple[str, memoryview]:
    """Return the header and the elements."""
    length_bytes = 2 if content[6:7] == b"\x01" else 4
    start = len(_NPY) + 2 + length_bytes
    header_bytes = int.from_bytes(content[start - length_bytes : start], "little")
    if len(content) < start or not 0 < header_bytes <= min(_MOST_HEADER_BYTES, len(content) - start):
        raise _damaged(name, f"it has {len(content)} bytes, and a header of {header_bytes}")
    header = bytes(content[start : start + header_bytes]).decode("latin-1")
    return header, memoryview(content)[start + header_bytes :]


def _damaged(name: str, what: str) -> InvalidArgument:
    return InvalidArgument(f"input {name!r}: expected a .npy file, got a damaged one: {what}")


def _safetensors() -> Any:
    # Not at the top: it comes with the extras only, and most requests do without.
    try:
        import safetensors
    except ImportError:
        raise MissingExtra('safetensors are not understood here: pip install "serveprune[torchserve]"') from None
    return safetensors
