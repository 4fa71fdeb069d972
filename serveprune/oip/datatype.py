from enum import StrEnum

import numpy as np
from numpy.typing import DTypeLike

from serveprune.errors import InvalidArgument


class Datatype(StrEnum):
    """Tensor element types of the Open Inference Protocol v2."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BF16 = "BF16"
    BYTES = "BYTES"

    dtype: np.dtype
    """Little-endian numpy dtype; BF16 is held as its uint16 bit pattern, BYTES as objects."""

    @classmethod
    def parse(cls, name: object) -> "Datatype":
        """Return the datatype of that name.

        Raises:
            InvalidArgument: The protocol has no such datatype.
        """
        found = _OF_NAME.get(name) if isinstance(name, str) else None
        if found is None:
            raise InvalidArgument(f"datatype: expected one of {', '.join(cls)}, got {name!r}")
        return found

    @classmethod
    def of(cls, dtype: DTypeLike) -> "Datatype":
        """Return the datatype whose elements numpy holds as ``dtype``; strings and objects are BYTES."""
        found = _OF_DTYPE.get(np.dtype(dtype))
        if found is None:
            if np.dtype(dtype).kind in "OSU":
                return cls.BYTES
            raise InvalidArgument(f"the protocol has no datatype for numpy's {np.dtype(dtype)}")
        return found


_DTYPES: dict[Datatype, np.dtype] = {
    Datatype.BOOL: np.dtype("?"),
    Datatype.UINT8: np.dtype("u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype("i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
    Datatype.BF16: np.dtype("<u2"),
    Datatype.BYTES: np.dtype("O"),
}
_OF_DTYPE = {dtype: datatype for datatype, dtype in _DTYPES.items() if datatype not in (Datatype.BF16, Datatype.BYTES)}
_OF_NAME = {str(datatype): datatype for datatype in Datatype}

for _datatype, _dtype in _DTYPES.items():
    _datatype.dtype = _dtype
