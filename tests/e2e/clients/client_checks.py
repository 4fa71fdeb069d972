"""What the scripts that drive clients nobody here wrote have in common; imports nothing of serveprune.

A script is called with a JSON file and ends with `report`. The file holds ``http`` and ``grpc`` (addresses of a server
that runs ONNX files), ``plane_http`` and ``plane_grpc`` (addresses of front ends over numpy functions, for datatypes
ONNX Runtime does not take), ``png`` (a picture) and ``arrays`` (.npz): inputs, and the answers of ONNX Runtime to them
in a process of its own.
"""

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DIRECTIONS: dict[str, str] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
HTTP, GRPC = DIRECTIONS["http"], DIRECTIONS["grpc"]
PNG = Path(DIRECTIONS["png"]).read_bytes()
ARRAYS: Mapping[str, Any] = dict(np.load(DIRECTIONS["arrays"]))
TEXTS: list[str] = ARRAYS["texts"].tolist()

SAMPLES: Mapping[str, Any] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 7, 255]], dtype=np.uint8),
    "UINT16": np.array([[0, 7, 2**16 - 1]], dtype=np.uint16),
    "UINT32": np.array([[0, 7, 2**32 - 1]], dtype=np.uint32),
    "UINT64": np.array([[0, 2**53 + 1, 2**64 - 1]], dtype=np.uint64),
    "INT8": np.array([[-128, 7, 127]], dtype=np.int8),
    "INT16": np.array([[-(2**15), 7, 2**15 - 1]], dtype=np.int16),
    "INT32": np.array([[-(2**31), 7, 2**31 - 1]], dtype=np.int32),
    "INT64": np.array([[-(2**63), 2**53 + 1, 2**63 - 1]], dtype=np.int64),
    "FP16": np.array([[0.5, -2.0, 65504.0]], dtype=np.float16),
    "FP32": np.array([[0.1, -2.0, 3.4e38], [1e-45, 0.0, -0.0]], dtype=np.float32),
    "FP64": np.array([[0.1, -2.0, 1.7e308]], dtype=np.float64),
}
"""Of every datatype but BYTES and BF16, with its extremes."""


def elements(*values: bytes | str) -> Any:
    """Return a row of BYTES elements as clients take them."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def same(given: Any, expected: Any) -> bool:
    """Tell whether two arrays of floats are the same up to rounding."""
    return given.shape == expected.shape and bool(np.allclose(given, expected, rtol=1e-4, atol=1e-4))


def error_of(call: Callable[[], Any], kind: type[Exception]) -> Any:
    """Return the error a call must fail with."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("the server answered what it should refuse")


def report(script: Mapping[str, Any]) -> None:
    """Run every ``check_*`` of a script, and print one JSON object: the traceback of each that failed, or null."""
    said: dict[str, str | None] = {}
    for name, check in sorted(script.items()):
        if name.startswith("check_"):
            try:
                check()
                said[name] = None
            except Exception:
                said[name] = traceback.format_exc()
    print(json.dumps(said))
