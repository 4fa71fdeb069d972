"""From one row of TorchServe's batch to a request, whatever form it came in."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from serveprune.errors import InvalidArgument
from serveprune.oip.binary_tensors import decode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_codec import decode_document, parse_object
from serveprune.oip.json_tensors import decode_json_data
from serveprune.oip.messages import InferenceRequest, ModelMetadata, Parameter
from serveprune.oip.parameters import kind
from serveprune.oip.tensor import Array, Tensor, TensorSpec
from serveprune.routing.objective import MAX_LATENCY_PARAMETER, MIN_QUALITY_PARAMETER
from serveprune.routing.tier_selection import STRICT_PARAMETER, TIER_PARAMETER
from serveprune.routing.urgency import PRIORITY_PARAMETER, TIMEOUT_PARAMETER

_CONTROLS = (
    TIER_PARAMETER,
    STRICT_PARAMETER,
    MAX_LATENCY_PARAMETER,
    MIN_QUALITY_PARAMETER,
    PRIORITY_PARAMETER,
    TIMEOUT_PARAMETER,
)
"""What a request may say of its tier, in a field or key of its own beside its inputs."""
_WHOLE = ("body", "data")
"""Names TorchServe gives to a body that has no fields, and its gRPC clients to the only entry of theirs."""
_TIER_PATH = re.compile(r"/?tier/(?P<tier>[^/]+)/?")
_NPY = b"\x93NUMPY"
_MOST_HEADER_BYTES = 2**16
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class Form(Enum):
    """What an answer looks like: what its request does."""

    OIP = auto()
    JSON = auto()
    NPY = auto()
    SAFETENSORS = auto()


@dataclass(slots=True)
class Row:
    """A request, and the form of its answer."""

    request: InferenceRequest
    form: Form


def decode_row(
    fields: Mapping[str, object], headers: Mapping[str, object], *, metadata: ModelMetadata, version: str
) -> Row:
    """Return the request that a row holds.

    Args:
        fields: Of a form or a gRPC call, or the body alone; JSON bodies are decoded already.
        headers: Of the request. Those of the fields, which TorchServe has among them, mean nothing here.
        metadata: Of the model that it is for.
        version: Of that model.

    Raises:
        ServePruneError: It holds none.
    """
    texts = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    row = _Reader(metadata, version, texts)
    for name, value in fields.items():
        row.take_field(name, value)
    return row.read()


class _Reader:
    """Gathers what a row says."""

    def __init__(self, metadata: ModelMetadata, version: str, headers: Mapping[str, str]) -> None:
        self._metadata = metadata
        self._version = version
        self._headers = headers
        self._specs = {spec.name: spec for spec in metadata.inputs}
        self._parameters: dict[str, Parameter] = {}
        self._given: dict[str, object] = {}

    def take_field(self, name: str, value: object) -> None:
        """Take a field, of what the request says of itself or of its inputs."""
        if name in _CONTROLS and name not in self._specs:
            self._say(name, _parameter(name, value))
        else:
            self._given[name] = value

    def read(self) -> Row:
        """Return the row."""
        tier = self._headers.get("x-compression-tier", "").strip() or None
        path = self._headers.get("url_path", "")
        if path.strip("/"):
            match = _TIER_PATH.fullmatch(path)
            if match is None:
                raise InvalidArgument(f"path: expected /predictions/MODEL/VERSION/tier/TIER, got {path!r} at its end")
            self._say(TIER_PARAMETER, match["tier"])
        whole = [name for name in self._given if name in _WHOLE and name not in self._specs]
        if whole and len(self._given) > 1:
            raise InvalidArgument(f"expected either {whole[0]} or inputs by their names, got {', '.join(self._given)}")
        if whole:
            document = _json_of(self._given[whole[0]])
            if isinstance(document, dict) and _is_oip(document):
                return self._oip(document, tier=tier)
            inputs, form = self._whole(document)
        else:
            inputs, form = self._named(self._given)
        if form is Form.NPY and len(self._metadata.outputs) > 1:
            names = ", ".join(spec.name for spec in self._metadata.outputs)
            raise InvalidArgument(
                f".npy holds one tensor, but the model gives several ({names}); send safetensors or JSON"
            )
        request = InferenceRequest(
            self._metadata.name,
            inputs,
            version=self._version,
            parameters=self._parameters,
            tier=tier,
            max_latency_ms=self._headers.get("x-max-latency-ms", "").strip() or None,
            min_quality=self._headers.get("x-min-quality", "").strip() or None,
            headers=tuple(self._headers.items()),
        )
        return Row(request, form)

    def _oip(self, document: dict[str, Any], *, tier: str | None) -> Row:
        request, _ = decode_document(
            document,
            binary=None,
            model=self._metadata.name,
            version=self._version,
            tier=tier,
            max_latency_ms=self._headers.get("x-max-latency-ms", "").strip() or None,
            min_quality=self._headers.get("x-min-quality", "").strip() or None,
            headers=tuple(self._headers.items()),
        )
        for name, value in request.parameters.items():
            self._say(name, value)
        request.parameters = self._parameters
        return Row(request, Form.OIP)

    def _whole(self, document: object) -> tuple[tuple[Tensor, ...], Form]:
        if isinstance(document, bytes | bytearray):
            found = _tensors_of(document, self._only_input)
            if found is not None:
                return found
            return (self._element(self._text_input(), bytes(document)),), Form.JSON
        if isinstance(document, dict):
            inputs = document.get("inputs")
            named = inputs if isinstance(inputs, dict) and "inputs" not in self._specs else document
            for name, value in document.items():
                if name in _CONTROLS and name not in self._specs:
                    self._say(name, _parameter(name, value))
            return self._named({key: each for key, each in named.items() if key in self._specs or key not in _CONTROLS})
        spec = self._text_input() if _holds_text(document) else self._only_input()
        return (_from_json(document, spec),), Form.JSON

    def _named(self, given: Mapping[str, object]) -> tuple[tuple[Tensor, ...], Form]:
        if not given:
            raise InvalidArgument(f"expected inputs, got none; the model takes: {', '.join(self._specs)}")
        tensors: list[Tensor] = []
        forms = set()
        for name, value in given.items():
            spec = self._specs.get(name)
            if spec is None:
                raise InvalidArgument(f"unknown input {name!r}; the model takes: {', '.join(self._specs)}")
            document = _json_of(value) if spec.datatype is not Datatype.BYTES else value
            if isinstance(document, bytes | bytearray):
                found = _tensors_of(document, lambda spec=spec: spec)  # type: ignore[misc]
                if found is None and spec.datatype is not Datatype.BYTES:
                    raise InvalidArgument(f"input {name!r}: expected .npy, safetensors or JSON, got other bytes")
                tensors += (self._element(spec, bytes(document)),) if found is None else found[0]
                forms.add(Form.JSON if found is None else found[1])
            else:
                tensors.append(_from_json(document, spec))
                forms.add(Form.JSON)
        return tuple(tensors), forms.pop() if len(forms) == 1 else Form.SAFETENSORS

    def _say(self, name: str, value: Parameter) -> None:
        if self._parameters.setdefault(name, value) != value:
            raise InvalidArgument(f"the request gives {name} twice: {self._parameters[name]!r} and {value!r}; give one")

    def _only_input(self) -> TensorSpec:
        specs = [spec for spec in self._specs.values() if spec.datatype is not Datatype.BYTES] or list(
            self._specs.values()
        )
        if len(specs) > 1:
            raise InvalidArgument(f"expected inputs by their names ({', '.join(self._specs)}), got one value")
        return specs[0]

    def _text_input(self) -> TensorSpec:
        spec = next((spec for spec in self._specs.values() if spec.datatype is Datatype.BYTES), None)
        if spec is None:
            raise InvalidArgument(
                f"expected JSON, .npy or safetensors for {', '.join(self._specs)}: the model takes no text and no images"
            )
        return spec

    @staticmethod
    def _element(spec: TensorSpec, value: bytes) -> Tensor:
        array = np.empty((1,) * len(spec.shape), dtype=object)
        array[...] = value
        return Tensor(spec.name, Datatype.BYTES, array)


def _parameter(name: str, value: object) -> Parameter:
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode("utf-8", "replace").strip()
    if isinstance(value, str) and name == STRICT_PARAMETER:
        return _TRUTHS.get(value.lower(), value)
    if isinstance(value, str) and name in (PRIORITY_PARAMETER, TIMEOUT_PARAMETER) and value.isdecimal():
        return int(value)
    if not isinstance(value, bool | int | float | str):
        raise InvalidArgument(f"{name}: expected a boolean, a number or a string, got {kind(value)}")
    return value


def _json_of(value: object) -> object:
    """Return what JSON says that TorchServe has not decoded: in a gRPC call, or under another content type."""
    if isinstance(value, bytes | bytearray) and value[:1].lstrip() in (b"{", b"["):
        try:
            return parse_object(b'{"":%b}' % bytes(value), where="body")[""]
        except InvalidArgument:
            return value
    return value


def _is_oip(document: Mapping[str, object]) -> bool:
    inputs = document.get("inputs")
    return isinstance(inputs, list) and all(isinstance(each, dict) and "name" in each for each in inputs)


def _holds_text(document: object) -> bool:
    while isinstance(document, list) and document:
        document = document[0]
    return isinstance(document, str)


def _from_json(data: object, spec: TensorSpec) -> Tensor:
    """Return a tensor, nested as its shape is; one that lacks the axis of rows is one row."""
    shape, inner = [], data
    while isinstance(inner, list) and len(shape) <= len(spec.shape):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    if not isinstance(data, list):
        data, shape = [data], [1] * max(len(spec.shape), 1)
    elif len(shape) == len(spec.shape) - 1:
        data, shape = [data], [1, *shape]
    return decode_json_data(data, name=spec.name, datatype=spec.datatype, shape=tuple(shape))


def _tensors_of(content: bytes | bytearray, only: Any) -> tuple[tuple[Tensor, ...], Form] | None:
    """Return the tensors of a `.npy` or safetensors file; ``None`` if it is neither."""
    if content.startswith(_NPY):
        return (_from_npy(bytes(content), only()),), Form.NPY
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) > 8 and 1 < header_bytes <= len(content) - 8 and content[8:9] == b"{":
        return _from_safetensors(bytes(content)), Form.SAFETENSORS
    return None


def _from_npy(content: bytes, spec: TensorSpec) -> Tensor:
    """Return the tensor of a `.npy` file, which numpy itself would allocate before it looks how much there is."""
    try:
        stream = io.BytesIO(content)
        major, _ = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(stream, max_header_size=_MOST_HEADER_BYTES)
    except (ValueError, EOFError, SyntaxError) as error:
        raise InvalidArgument(f"input {spec.name!r}: expected a .npy file, got a damaged one: {error}") from None
    if dtype.hasobject:
        raise InvalidArgument(f"input {spec.name!r}: expected numbers in the .npy file, got Python objects")
    rest = memoryview(content)[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != rest.nbytes:
        raise InvalidArgument(
            f"input {spec.name!r}: expected {math.prod(shape) * dtype.itemsize} bytes for {dtype} of shape "
            f"{list(shape)}, got {rest.nbytes}"
        )
    array: Array = np.frombuffer(rest, dtype).reshape(shape, order="F" if by_columns else "C")
    return _as_sent(spec, array)


def _as_sent(spec: TensorSpec, array: Array) -> Tensor:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if spec.datatype is Datatype.BF16:
        raise InvalidArgument(f"input {spec.name!r}: .npy has no BF16; send safetensors")
    if array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]
    return Tensor.of(spec.name, np.ascontiguousarray(array))


_OF_SAFETENSORS = {
    "BOOL": Datatype.BOOL, "U8": Datatype.UINT8, "U16": Datatype.UINT16, "U32": Datatype.UINT32,
    "U64": Datatype.UINT64, "I8": Datatype.INT8, "I16": Datatype.INT16, "I32": Datatype.INT32, "I64": Datatype.INT64,
    "F16": Datatype.FP16, "BF16": Datatype.BF16, "F32": Datatype.FP32, "F64": Datatype.FP64,
}  # fmt: skip


def _from_safetensors(content: bytes) -> tuple[Tensor, ...]:
    # Its own parser checks that the tensors are what the file says, and overlap nowhere.
    from safetensors import SafetensorError, deserialize

    try:
        found: Sequence[tuple[str, Mapping[str, Any]]] = deserialize(content)
    except SafetensorError as error:
        raise InvalidArgument(f"expected a safetensors file, got a damaged one: {error}") from None
    tensors = []
    for name, each in found:
        datatype = _OF_SAFETENSORS.get(each["dtype"])
        if datatype is None:
            raise InvalidArgument(f"input {name!r}: the protocol has no datatype for {each['dtype']} of safetensors")
        tensors.append(
            decode_binary(memoryview(bytes(each["data"])), name=name, datatype=datatype, shape=each["shape"])
        )
    return tuple(tensors)
