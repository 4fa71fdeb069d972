"""From one row of TorchServe's batch to a request, whatever form it came in."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from serveprune.errors import InvalidArgument, Unimplemented
from serveprune.handlers.torchserve.tensor_files import (
    Content,
    is_npy,
    is_safetensors,
    tensor_of_npy,
    tensors_of_safetensors,
)
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_codec import decode_document, parse_json
from serveprune.oip.json_tensors import decode_json_data
from serveprune.oip.messages import InferenceRequest, ModelMetadata, Parameter
from serveprune.oip.parameters import kind
from serveprune.oip.tensor import Tensor, TensorSpec
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
_MODEL_NAME = "model_name"
"""Field that leads `/invocations?model_name=...` here."""
_JSON = "application/json"
_WHOLE = ("body", "data")
"""Names TorchServe gives to a body that has no fields, and its gRPC clients to the only entry of theirs."""
_TIER_PATH = re.compile(r"/?tier/(?P<tier>[^/]+)/?")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_LONGEST_WHOLE_NUMBER = 18
_SHOWN = 80


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
        fields: Of a form, a gRPC call or the query of `/invocations`, or the body alone; bytes, or decoded already.
        headers: Of the request, and among them, under the names of fields, those of the fields.
        metadata: Of the model that it is for.
        version: Of that model.

    Raises:
        ServePruneError: It holds none.
    """
    row = _Reader(headers, metadata, version)
    try:
        for name, value in fields.items():
            row.take_field(name, value)
        return row.read()
    except UnicodeEncodeError:
        raise InvalidArgument("expected text in UTF-8, got a half of a surrogate pair") from None


class _Reader:
    """Gathers what a row says."""

    def __init__(self, headers: Mapping[str, object], metadata: ModelMetadata, version: str) -> None:
        self._metadata = metadata
        self._version = version
        self._headers = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
        self._types = {
            name: str(value.get("content-type") or "").lower()
            for name, value in headers.items()
            if isinstance(value, Mapping)
        }
        self._specs = {spec.name: spec for spec in metadata.inputs}
        self._parameters: dict[str, Parameter] = {}
        self._given: dict[str, object] = {}

    def take_field(self, name: str, value: object) -> None:
        """Take a field, of what the request says of itself or of its inputs."""
        if self._is_control(name):
            self._say(name, _parameter(name, value))
        elif name != _MODEL_NAME or name in self._specs:
            self._given[name] = value

    def read(self) -> Row:
        """Return the row."""
        if self._headers.get("explain", "").lower() == "true":
            raise Unimplemented("explanations are not supported; ask /predictions")
        self._read_path(self._headers.get("url_path", ""))
        whole = next((name for name in self._given if self._is_whole(name)), None)
        if whole is None:
            return self._row(*self._named(self._given, self._types))
        if len(self._given) > 1:
            raise InvalidArgument(f"expected either {whole} or inputs by their names, got {_listed(self._given)}")
        takes_text = any(spec.datatype is Datatype.BYTES for spec in self._specs.values())
        return self._whole(_document(self._given[whole], self._types.get(whole, ""), where=whole, is_text=takes_text))

    def _read_path(self, path: str) -> None:
        if path.strip("/"):
            match = _TIER_PATH.fullmatch(path)
            if match is None:
                raise InvalidArgument(
                    f"path: expected /predictions/MODEL/VERSION/tier/TIER, got {path[:_SHOWN]!r} at its end"
                )
            self._say(TIER_PARAMETER, match["tier"])

    def _is_control(self, name: str) -> bool:
        return name in _CONTROLS and name not in self._specs

    def _is_whole(self, name: str) -> bool:
        return name in _WHOLE and name not in self._specs

    def _row(self, inputs: Sequence[Tensor], form: Form) -> Row:
        names = [tensor.name for tensor in inputs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidArgument(f"input {twice!r} is given a second time; send it once")
        if form is Form.NPY and len(self._metadata.outputs) > 1:
            outputs = ", ".join(spec.name for spec in self._metadata.outputs)
            raise InvalidArgument(
                f".npy holds one tensor, but the model gives several ({outputs}); send safetensors or JSON"
            )
        return Row(self._request(inputs=tuple(inputs), parameters=self._parameters), form)

    def _request(self, **what: Any) -> InferenceRequest:
        return InferenceRequest(self._metadata.name, **what, **self._said_by_transport())

    def _said_by_transport(self) -> dict[str, Any]:
        asked = {
            "tier": "x-compression-tier",
            "max_latency_ms": "x-max-latency-ms",
            "min_quality": "x-min-quality",
        }
        said = {name: self._headers.get(header, "").strip() or None for name, header in asked.items()}
        return {"version": self._version, "headers": tuple(self._headers.items()), **said}

    def _whole(self, document: object) -> Row:
        """Return the row of a body without fields."""
        if isinstance(document, bytes | bytearray | str):
            if not isinstance(document, str) and (is_npy(document) or is_safetensors(document)):
                return self._row(*self._of_file(document, None))
            return self._row([_element(self._text_input(), document)], Form.JSON)
        if isinstance(document, dict):
            return self._mapping(document)
        spec = self._text_input() if _holds_text(document) else self._only_input()
        return self._row([_from_json(document, spec)], Form.JSON)

    def _mapping(self, document: dict[str, Any]) -> Row:
        inputs = document.get("inputs")
        if isinstance(inputs, list) and (not inputs or isinstance(inputs[0], dict)):
            return self._oip(document)
        for name in filter(self._is_control, document):
            self._say(name, _parameter(name, document[name]))
        named = {name: value for name, value in document.items() if not self._is_control(name)}
        if list(named) == ["inputs"] and "inputs" not in self._specs:
            if not isinstance(inputs, dict):
                return self._whole(inputs)
            named = inputs
        return self._row(*self._named(named, None))

    def _oip(self, document: dict[str, Any]) -> Row:
        request, _ = decode_document(document, binary=None, model=self._metadata.name, **self._said_by_transport())
        for name, value in request.parameters.items():
            self._say(name, value)
        request.parameters = self._parameters
        return Row(request, Form.OIP)

    def _named(self, given: Mapping[str, object], types: Mapping[str, str] | None) -> tuple[list[Tensor], Form]:
        """Return the tensors of inputs that are given by name, and the form of the answer.

        Args:
            given: By name of the input.
            types: Content types by name; ``None`` if what is given was in JSON, and is no more than it says.
        """
        if not given:
            raise InvalidArgument(f"expected inputs, got none; the model takes: {_listed(self._specs)}")
        tensors: list[Tensor] = []
        forms = set()
        for name, value in given.items():
            found, form = self._of_field(self._spec(name), value, None if types is None else types.get(name, ""))
            tensors += found
            forms.add(form)
        return tensors, forms.pop() if len(forms) == 1 else Form.SAFETENSORS

    def _of_field(self, spec: TensorSpec, value: object, content_type: str | None) -> tuple[list[Tensor], Form]:
        if content_type is None:
            return [_from_json(value, spec)], Form.JSON
        if spec.datatype is Datatype.BYTES:
            if isinstance(value, bytes | bytearray | str) and not content_type.startswith(_JSON):
                return [_element(spec, value)], Form.JSON
        elif isinstance(value, bytes | bytearray) and (is_npy(value) or is_safetensors(value)):
            return self._of_file(value, spec)
        document = _document(value, content_type, where=f"input {spec.name!r}", is_text=False)
        return [_from_json(document, spec)], Form.JSON

    def _of_file(self, content: Content, spec: TensorSpec | None) -> tuple[list[Tensor], Form]:
        """Return what a file holds; a `.npy` file that is the whole body is of the only input."""
        if is_npy(content):
            spec = spec or self._only_input()
            return [_with_rows(tensor_of_npy(content, name=spec.name), spec)], Form.NPY
        return [_with_rows(each, self._spec(each.name)) for each in tensors_of_safetensors(content)], Form.SAFETENSORS

    def _spec(self, name: str) -> TensorSpec:
        spec = self._specs.get(name)
        if spec is None:
            raise InvalidArgument(f"unknown input {name[:_SHOWN]!r}; the model takes: {_listed(self._specs)}")
        return spec

    def _say(self, name: str, value: Parameter) -> None:
        if self._parameters.setdefault(name, value) != value:
            raise InvalidArgument(f"the request gives {name} twice: {self._parameters[name]!r} and {value!r}; give one")

    def _only_input(self) -> TensorSpec:
        every = list(self._specs.values())
        specs = [spec for spec in every if spec.datatype is not Datatype.BYTES] or every
        if len(specs) != 1:
            raise InvalidArgument(f"expected inputs by their names ({_listed(self._specs)}), got one value")
        return specs[0]

    def _text_input(self) -> TensorSpec:
        spec = next((spec for spec in self._specs.values() if spec.datatype is Datatype.BYTES), None)
        if spec is None:
            raise InvalidArgument(
                f"expected JSON, .npy or safetensors for {_listed(self._specs)}: the model takes no text and no images"
            )
        return spec


def _parameter(name: str, value: object) -> Parameter:
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode("utf-8", "replace")
    if isinstance(value, str):
        text = value = value.strip()
        if name == STRICT_PARAMETER:
            return _TRUTHS.get(text.lower(), text)
        is_whole = name in (PRIORITY_PARAMETER, TIMEOUT_PARAMETER) and text.isascii() and text.isdecimal()
        return int(text) if is_whole and len(text) <= _LONGEST_WHOLE_NUMBER else text
    if not isinstance(value, bool | int | float):
        raise InvalidArgument(f"{name}: expected a boolean, a number or a string, got {kind(value)}")
    return value


def _document(value: object, content_type: str, *, where: str, is_text: bool) -> object:
    """Return what a field says in JSON; itself if it says nothing in JSON and need not.

    Args:
        value: Bytes or text, unless TorchServe has decoded it.
        content_type: As the client declared it, in lower case.
        where: For the message.
        is_text: Whether it may be anything else, so that only what parses is JSON.
    """
    if not isinstance(value, bytes | bytearray | str):
        return value
    is_declared = content_type.startswith(_JSON)
    if isinstance(value, str) and is_declared:
        return value
    if not is_declared and not isinstance(value, str) and (is_npy(value) or is_safetensors(value)):
        return value
    content = value.encode() if isinstance(value, str) else value
    if is_declared or not is_text:
        return parse_json(content, where=where)
    if content_type.startswith("text/") or content.lstrip()[:1] not in (b"{", b"["):
        return value
    try:
        return parse_json(content, where=where)
    except InvalidArgument:
        return value


def _holds_text(document: object) -> bool:
    while isinstance(document, list) and document:
        document = document[0]
    return isinstance(document, str)


def _from_json(data: object, spec: TensorSpec) -> Tensor:
    """Return a tensor, nested as its shape is; one that lacks the axis of rows is one row."""
    shape: list[int] = []
    inner = data
    while isinstance(inner, list) and len(shape) <= len(spec.shape):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    if not isinstance(data, list):
        data, shape = [data], [1] * len(spec.shape)
    elif len(shape) == len(spec.shape) - 1:
        data, shape = [data], [1, *shape]
    return decode_json_data(data, name=spec.name, datatype=spec.datatype, shape=tuple(shape))


def _element(spec: TensorSpec, value: Content | str) -> Tensor:
    """Return a tensor with one element, a text or an image."""
    array = np.empty((1,) * len(spec.shape), dtype=object)
    array[...] = value.encode() if isinstance(value, str) else bytes(value)
    return Tensor(spec.name, Datatype.BYTES, array)


def _with_rows(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Return a tensor that has the axis of rows; one that lacks it is one row."""
    lacks = tensor.array.ndim == len(spec.shape) - 1
    return Tensor(tensor.name, tensor.datatype, tensor.array[np.newaxis]) if lacks else tensor


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(name[:_SHOWN] for name in list(names)[:_SHOWN])
