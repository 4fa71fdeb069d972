"""What every front end must answer, free of any protocol.

A runner sends each case over its protocol, in every form the protocol has for it, to a server that has the
models of ``contract.numpy_plane`` (or the same models as ONNX files), and compares.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from serveprune.errors import Code
from serveprune.oip.binary_tensors import decode_binary, encode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import Parameter
from serveprune.oip.tensor import Array


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor as it stands in a message, so that it can also contradict itself."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, name: str, array: Array, *, datatype: Datatype | None = None) -> "WireTensor":
        chosen = datatype or Datatype.of(array.dtype)
        return cls(name, chosen, array.shape, bytes(encode_binary(array, chosen)))

    @property
    def array(self) -> Array:
        """The elements; only for tensors that are in order."""
        return decode_binary(
            memoryview(self.content), name=self.name, datatype=Datatype(self.datatype), shape=self.shape
        ).array

    @property
    def has_json_form(self) -> bool:
        """Whether JSON can say all elements exactly."""
        if self.datatype in (Datatype.FP16, Datatype.BF16):
            return False
        if self.datatype in (Datatype.FP32, Datatype.FP64):
            return bool(np.isfinite(self.array).all())
        if self.datatype == Datatype.BYTES:
            return all(_is_utf8(element) for element in self.array.ravel())
        return True


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and its answer or the code of its refusal.

    Attributes:
        tier: Sent as header or metadata ``x-compression-tier``.
        input_parameters: Of the first input.
        output_parameters: Of the first output that is asked for.
        expected: Outputs of the answer, in order.
        served_tier: Tier that the answer must name.
        refusal: Code of the error, if it is one.
        mentions: What the error's message must contain.
        retry_after_seconds: Whole seconds of Retry-After over HTTP.
    """

    name: str
    model: str
    inputs: tuple[WireTensor, ...]
    outputs: tuple[str, ...] = ()
    version: str | None = None
    id: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    tier: str | None = None
    input_parameters: Mapping[str, Parameter] = field(default_factory=dict)
    output_parameters: Mapping[str, Parameter] = field(default_factory=dict)
    expected: tuple[WireTensor, ...] = ()
    served_tier: str = "dense"
    refusal: Code | None = None
    mentions: str = ""
    retry_after_seconds: int | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def has_json_form(self) -> bool:
        """Whether request and answer can be JSON alone; never so for tensors that contradict themselves."""
        return all(tensor.has_json_form for tensor in (*self.inputs, *self.expected))


@dataclass(frozen=True, slots=True)
class ChangeCase:
    """One request to load or unload a model, and the code of its refusal.

    Attributes:
        mentions: What the error's message must contain.
    """

    action: str
    model: str
    parameters: Mapping[str, bool | str] = field(default_factory=dict)
    refusal: Code | None = None
    mentions: str = ""

    def __str__(self) -> str:
        return " ".join((self.action, self.model, *self.parameters))


CHANGES = (
    ChangeCase("load", "add"),
    ChangeCase("unload", "add"),
    ChangeCase("unload", "add", {"unload_dependents": True}),
    ChangeCase("load", "add", {"config": "{}"}, Code.UNIMPLEMENTED, "'config' is not supported"),
    ChangeCase("load", "add", {"file:1/model.onnx": "x"}, Code.UNIMPLEMENTED, "'file:1/model.onnx' is not supported"),
    ChangeCase("unload", "add", {"force": True}, Code.UNIMPLEMENTED, "'force' is not supported"),
    ChangeCase("load", "refused", {}, Code.FAILED_PRECONDITION, "not loaded here"),
    ChangeCase("unload", "refused", {}, Code.FAILED_PRECONDITION, "not loaded here"),
    ChangeCase("load", "failing", {}, Code.FAILED_PRECONDITION, "the graph is broken"),
    ChangeCase("load", "crashing", {}, Code.INTERNAL, "internal error"),
)


@dataclass(frozen=True, slots=True)
class ElementsCase:
    """One input element by element, in JSON or in gRPC's typed contents, that is refused.

    Attributes:
        elements: As Python's ``json`` writes them.
        contents: The field of gRPC's contents to send them in; ``None`` where they have no form in it.
        mentions: What the error's message must contain.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: object
    contents: str | None
    mentions: str

    def __str__(self) -> str:
        return self.name


def _is_utf8(element: bytes) -> bool:
    try:
        element.decode()
    except UnicodeDecodeError:
        return False
    return True


def _elements(*values: bytes) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


_SAMPLES: Mapping[Datatype, Array] = {
    Datatype.BOOL: np.array([[True, False, True]]),
    Datatype.UINT8: np.array([[0, 7, 255]], dtype=np.uint8),
    Datatype.UINT16: np.array([[0, 7, 2**16 - 1]], dtype=np.uint16),
    Datatype.UINT32: np.array([[0, 7, 2**32 - 1]], dtype=np.uint32),
    Datatype.UINT64: np.array([[0, 2**53 + 1, 2**64 - 1]], dtype=np.uint64),
    Datatype.INT8: np.array([[-128, 7, 127]], dtype=np.int8),
    Datatype.INT16: np.array([[-(2**15), 7, 2**15 - 1]], dtype=np.int16),
    Datatype.INT32: np.array([[-(2**31), 7, 2**31 - 1]], dtype=np.int32),
    Datatype.INT64: np.array([[-(2**63), 2**53 + 1, 2**63 - 1]], dtype=np.int64),
    Datatype.FP16: np.array([[0.5, -2.0, 65504.0]], dtype=np.float16),
    Datatype.FP32: np.array([[0.1, -2.0, 3.4e38], [1e-45, 0.0, -0.0]], dtype=np.float32),
    Datatype.FP64: np.array([[0.1, -2.0, 1.7e308]], dtype=np.float64),
    Datatype.BF16: np.array([[0x3F80, 0xBF80, 0x7F7F]], dtype=np.uint16),
    Datatype.BYTES: _elements(b"boot", "größer 靴".encode(), b"").reshape(1, 3),
}


def identity_model(datatype: Datatype) -> str:
    """Name of the model that gives its input ``x``, of shape [-1, -1], back as ``y``."""
    return f"identity_{datatype.lower()}"


def _identity(name: str, array: Array, datatype: Datatype) -> Case:
    return Case(
        name,
        identity_model(datatype),
        (WireTensor.of("x", array, datatype=datatype),),
        expected=(WireTensor.of("y", array, datatype=datatype),),
    )


MAX_ROWS = 4096
"""Of one request, the default of every server."""

_A = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=np.float32)
_B = np.array([[0.5, 0.5, 0.5], [0.0, 1.0, 2.0]], dtype=np.float32)
_TERMS = (WireTensor.of("a", _A), WireTensor.of("b", _B))
_SUM = WireTensor.of("sum", np.array([[1.5, 2.5, 3.5], [4.0, 6.0, 8.0]], dtype=np.float32))
_DIFFERENCE = WireTensor.of("difference", np.array([[0.5, 1.5, 2.5], [4.0, 4.0, 4.0]], dtype=np.float32))
_SPECIAL = np.array([[math.nan, math.inf, -math.inf]])

ANSWERED: tuple[Case, ...] = (
    *(_identity(f"{datatype} survives", array, datatype) for datatype, array in _SAMPLES.items()),
    _identity("NaN and infinity in FP32 survive", _SPECIAL.astype(np.float32), Datatype.FP32),
    _identity("NaN and infinity in FP64 survive", _SPECIAL, Datatype.FP64),
    _identity("BYTES that are no text survive", _elements(b"\xff\x00\xfe").reshape(1, 1), Datatype.BYTES),
    Case("several inputs and outputs", "add", _TERMS, expected=(_SUM, _DIFFERENCE)),
    Case("inputs in another order", "add", _TERMS[::-1], expected=(_SUM, _DIFFERENCE)),
    Case("one output", "add", _TERMS, outputs=("difference",), expected=(_DIFFERENCE,)),
    Case("outputs in the wanted order", "add", _TERMS, ("difference", "sum"), expected=(_DIFFERENCE, _SUM)),
    Case("named version", "add", _TERMS, version="1", expected=(_SUM, _DIFFERENCE)),
    Case("id comes back", "add", _TERMS, id="request-7 ü", expected=(_SUM, _DIFFERENCE)),
    Case("tier by qualified name", "add@int8", _TERMS, expected=(_SUM, _DIFFERENCE), served_tier="int8"),
    Case("tier by header", "add", _TERMS, tier="int8", expected=(_SUM, _DIFFERENCE), served_tier="int8"),
    Case(
        "tier by parameter",
        "add",
        _TERMS,
        parameters={"tier": "int8"},
        expected=(_SUM, _DIFFERENCE),
        served_tier="int8",
    ),
    Case(
        "tier said three times alike",
        "add@int8",
        _TERMS,
        parameters={"tier": "int8"},
        tier="int8",
        expected=(_SUM, _DIFFERENCE),
        served_tier="int8",
    ),
    Case(
        "parameters of every type",
        "add",
        _TERMS,
        parameters={"flag": True, "count": -3, "ratio": 0.25, "word": "ü"},
        expected=(_SUM, _DIFFERENCE),
    ),
)
"""Requests that every server with these models answers."""


def _refused(name: str, *inputs: WireTensor, model: str = "add", mentions: str) -> Case:
    return Case(name, model, inputs, refusal=Code.INVALID_ARGUMENT, mentions=mentions)


REFUSED: tuple[Case, ...] = (
    Case("unknown model", "nobody", _TERMS, refusal=Code.NOT_FOUND, mentions="nobody"),
    Case("unknown version", "add", _TERMS, version="99", refusal=Code.NOT_FOUND, mentions="99"),
    Case("unknown tier by name", "add@int3", _TERMS, refusal=Code.NOT_FOUND, mentions="int3"),
    Case("unknown tier by header", "add", _TERMS, tier="int3", refusal=Code.NOT_FOUND, mentions="int3"),
    Case("tiers disagree", "add@int8", _TERMS, tier="dense", refusal=Code.INVALID_ARGUMENT, mentions="tier"),
    Case("unknown output", "add", _TERMS, ("product",), refusal=Code.INVALID_ARGUMENT, mentions="product"),
    _refused("unknown input", *_TERMS, WireTensor.of("c", _B), mentions="'c'"),
    _refused("missing input", _TERMS[0], mentions="b"),
    _refused("no input", mentions="a"),
    _refused("wrong datatype", _TERMS[0], WireTensor.of("b", _B.astype(np.float64)), mentions="FP64"),
    _refused("wrong rank", _TERMS[0], WireTensor.of("b", _B.ravel()), mentions="[6]"),
    _refused("wrong static size", _TERMS[0], WireTensor.of("b", _B[:, :2]), mentions="[2, 2]"),
    _refused("empty batch", WireTensor.of("a", _A[:0]), WireTensor.of("b", _B[:0]), mentions="[0, 3]"),
    _refused("rows disagree", _TERMS[0], WireTensor.of("b", _B[:1]), mentions="rows"),
    _refused(
        "too many rows",
        WireTensor.of("x", np.zeros((MAX_ROWS + 1, 1), dtype=np.float32)),
        model="identity_fp32",
        mentions=str(MAX_ROWS),
    ),
    _refused("empty tier by name", *_TERMS, model="add@", mentions="empty"),
    Case(
        "tiers disagree in header and parameter",
        "add",
        _TERMS,
        tier="dense",
        parameters={"tier": "int8"},
        refusal=Code.INVALID_ARGUMENT,
        mentions="more than one tier",
    ),
    *(
        Case(
            f"{name} is {value!r}",
            "add",
            _TERMS,
            parameters={name: value},
            refusal=Code.INVALID_ARGUMENT,
            mentions=name,
        )
        for name, value in (("tier", 5), ("tier", True), ("tier", ""), ("strict_tier", "yes"), ("strict_tier", 2))
    ),
)
"""Requests in good form that every server with these models refuses."""

_LACKED = (
    ("input in shared memory", {"input_parameters": {"shared_memory_region": "r"}}, "shared memory"),
    ("output to shared memory", {"output_parameters": {"shared_memory_region": "r"}}, "shared memory"),
    ("output as classes", {"output_parameters": {"classification": 3}}, "classification"),
)

EXTENSIONS: tuple[Case, ...] = tuple(
    Case(name, "add", _TERMS, ("sum",), refusal=Code.UNIMPLEMENTED, mentions=mentions, **parameters)
    for name, parameters, mentions in _LACKED
)
"""Requests for what other servers of the protocol offer."""

CONTRADICTING: tuple[Case, ...] = (
    Case("output asked for twice", "add", _TERMS, ("sum", "sum"), refusal=Code.INVALID_ARGUMENT, mentions="'sum'"),
    _refused("input sent twice", *_TERMS, _TERMS[0], mentions="'a'"),
    _refused("unknown datatype", WireTensor("a", "FP8", (2, 3), b"\0" * 6), mentions="FP8"),
    _refused("datatype in lower case", WireTensor("a", "fp32", (1,), b"\0" * 4), mentions="fp32"),
    _refused("negative size", WireTensor("a", "FP32", (-1, 3), b"\0" * 12), mentions="-1"),
    _refused("huge size", WireTensor("a", "FP32", (2**62, 3), b"\0" * 12), mentions=str(2**62)),
    _refused("sizes whose product overflows", WireTensor("a", "FP32", (2**33, 2**33), b"\0" * 12), mentions="'a'"),
    _refused("too many axes", WireTensor("a", "FP32", (1,) * 100, b"\0" * 4), mentions="100"),
    _refused("huge tensor that is empty", WireTensor("a", "FP32", (0, 2**40, 2**40), b""), mentions="'a'"),
    _refused("too few bytes", WireTensor("a", "FP32", (2, 3), b"\0" * 20), mentions="20"),
    _refused("too many bytes", WireTensor("a", "FP32", (2, 3), b"\0" * 28), mentions="28"),
    _refused("BOOL that is neither", WireTensor("x", "BOOL", (1,), b"\2"), model="identity_bool", mentions="BOOL"),
    _refused(
        "BYTES element beyond the end",
        WireTensor("x", "BYTES", (1,), b"\x05\0\0\0ab"),
        model="identity_bytes",
        mentions="element 0",
    ),
    _refused(
        "BYTES after the last element",
        WireTensor("x", "BYTES", (1,), b"\x01\0\0\0ab"),
        model="identity_bytes",
        mentions="after the last",
    ),
    _refused(
        "BYTES length cut short",
        WireTensor("x", "BYTES", (2,), b"\x02\0\0\0ab\x01\0"),
        model="identity_bytes",
        mentions="element 1",
    ),
    _refused(
        "BYTES with a huge count",
        WireTensor("x", "BYTES", (2**39,), b"\0\0\0\0"),
        model="identity_bytes",
        mentions=str(2**39),
    ),
)
"""Tensors that contradict themselves; only binary forms can carry them."""

FAILING: tuple[Case, ...] = (
    Case("model crashes", "broken", (), refusal=Code.INTERNAL, mentions="internal error; see the server's log"),
    Case("tier not yet built", "building", (), refusal=Code.UNAVAILABLE, mentions="building", retry_after_seconds=3),
    Case("queue is full", "full", (), refusal=Code.RESOURCE_EXHAUSTED, mentions="full", retry_after_seconds=1),
    Case("too late", "late", (), refusal=Code.DEADLINE_EXCEEDED, mentions="deadline"),
    Case("wrong state", "unprepared", (), refusal=Code.FAILED_PRECONDITION, mentions="extra"),
    Case("not built here", "unimplemented", (), refusal=Code.UNIMPLEMENTED, mentions="streams"),
    Case("damaged store", "damaged", (), refusal=Code.DATA_LOSS, mentions="digest"),
)
"""Models of the double that fail, each with another code."""

_INT8, _FP32, _BYTES = "int_contents", "fp32_contents", "bytes_contents"
ELEMENTS: tuple[ElementsCase, ...] = (
    ElementsCase("integer above its range", "INT8", (1, 2), [1, 128], _INT8, "128"),
    ElementsCase("integer below its range", "INT8", (1, 2), [1, -129], _INT8, "-129"),
    ElementsCase("unsigned integer above its range", "UINT16", (1, 1), [2**16], "uint_contents", str(2**16)),
    ElementsCase("unsigned integer below 0", "UINT64", (1, 1), [-1], None, "-1"),
    ElementsCase("integer of more than 64 bits", "INT64", (1, 1), [2**63], None, "9223372036854775807"),
    ElementsCase("fraction for an integer", "INT64", (1, 2), [1, 1.5], None, "1.5"),
    ElementsCase("truth for an integer", "INT64", (1, 1), [True], None, "boolean"),
    ElementsCase("number for a truth", "BOOL", (1, 1), [2], None, "2"),
    ElementsCase("text for a number", "FP32", (1, 1), ["1"], None, "string"),
    ElementsCase("number for text", "BYTES", (1, 1), [1], None, "number"),
    ElementsCase("null for a number", "FP32", (1, 1), [None], None, "null"),
    ElementsCase("NaN", "FP32", (1, 1), [math.nan], None, "NaN"),
    ElementsCase("infinity", "FP64", (1, 1), [-math.inf], None, "Infinity"),
    ElementsCase("number above its range", "FP32", (1, 1), [1e39], None, "too large"),
    ElementsCase("too few elements", "FP32", (1, 3), [1.0, 2.0], _FP32, "3"),
    ElementsCase("too many elements", "FP32", (1, 3), [1.0, 2.0, 3.0, 4.0], _FP32, "4"),
    ElementsCase("too few texts", "BYTES", (1, 2), ["a"], _BYTES, "2"),
    ElementsCase("too few rows", "FP32", (2, 2), [[1.0, 2.0]], None, "[2, 2]"),
    ElementsCase("rows of different length", "FP32", (2, 2), [[1.0, 2.0], [3.0]], None, "[2, 2]"),
    ElementsCase("number as data", "FP32", (1, 1), 1.0, None, "array"),
    ElementsCase("FP16 has no such form", "FP16", (1, 1), [1.0], _FP32, "FP16"),
    ElementsCase("BF16 has no such form", "BF16", (1, 1), [1.0], _FP32, "BF16"),
    ElementsCase("huge shape", "FP32", (2**20, 2**19), [1.0], _FP32, str(2**39)),
)
"""Elements that are not what datatype and shape say, sent to the identity model of the datatype as ``x``."""
