"""How a request of one row is written for each server, and how its answer is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array

_JSON_LENGTH_HEADER = "Inference-Header-Content-Length"

Feeds = Mapping[str, Array]


class Wire(StrEnum):
    """What a row of the table is about."""

    JSON = "json"
    BINARY = "binary"
    GRPC = "grpc"


class WireFormat(Protocol):
    """Requests and answers of one server for one model.

    Attributes:
        wire: JSON or binary tensors over HTTP, or gRPC.
        path: Of the URL, or the full name of the gRPC method.
    """

    @property
    def wire(self) -> Wire:
        """See above."""
        ...

    @property
    def path(self) -> str:
        """See above."""
        ...

    def encode(self, feeds: Feeds) -> tuple[bytes, Mapping[str, str]]:
        """Return the body and its headers."""
        ...

    def decode(self, body: bytes, headers: Mapping[str, str], *, expected: Feeds) -> Feeds:
        """Return all outputs by name; ``expected`` tells formats that carry no names which there are."""
        ...


@dataclass(frozen=True, slots=True)
class OipJson:
    """The Open Inference Protocol over HTTP, all numbers as text."""

    path: str
    wire: Wire = Wire.JSON

    def encode(self, feeds: Feeds) -> tuple[bytes, Mapping[str, str]]:
        """See `WireFormat.encode`."""
        inputs = [{**_declared(name, array), "data": array.ravel().tolist()} for name, array in feeds.items()]
        return json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}

    def decode(self, body: bytes, headers: Mapping[str, str], *, expected: Feeds) -> Feeds:
        """See `WireFormat.decode`."""
        outputs = json.loads(body)["outputs"]
        return {
            each["name"]: np.array(each["data"], Datatype.parse(each["datatype"]).dtype).reshape(each["shape"])
            for each in outputs
        }


@dataclass(frozen=True, slots=True)
class OipBinary:
    """The Open Inference Protocol over HTTP with its binary extension, both ways."""

    path: str
    wire: Wire = Wire.BINARY

    def encode(self, feeds: Feeds) -> tuple[bytes, Mapping[str, str]]:
        """See `WireFormat.encode`."""
        inputs = [
            {**_declared(name, array), "parameters": {"binary_data_size": array.nbytes}}
            for name, array in feeds.items()
        ]
        document = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH_HEADER: str(len(document))}
        return document + b"".join(array.tobytes() for array in feeds.values()), headers

    def decode(self, body: bytes, headers: Mapping[str, str], *, expected: Feeds) -> Feeds:
        """See `WireFormat.decode`."""
        length = int(next(value for name, value in headers.items() if name.lower() == _JSON_LENGTH_HEADER.lower()))
        outputs, begin = {}, length
        for each in json.loads(body[:length])["outputs"]:
            end = begin + each["parameters"]["binary_data_size"]
            flat = np.frombuffer(body[begin:end], Datatype.parse(each["datatype"]).dtype)
            outputs[each["name"]] = flat.reshape(each["shape"])
            begin = end
        return outputs


@dataclass(frozen=True, slots=True)
class OipGrpc:
    """The Open Inference Protocol over gRPC with raw contents."""

    model: str
    wire: Wire = Wire.GRPC
    path: str = "/inference.GRPCInferenceService/ModelInfer"

    def encode(self, feeds: Feeds) -> tuple[bytes, Mapping[str, str]]:
        """See `WireFormat.encode`."""
        message = pb.ModelInferRequest(model_name=self.model)
        for name, array in feeds.items():
            message.inputs.add(name=name, datatype=str(Datatype.of(array.dtype)), shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        return message.SerializeToString(), {}

    def decode(self, body: bytes, headers: Mapping[str, str], *, expected: Feeds) -> Feeds:
        """See `WireFormat.decode`."""
        message = pb.ModelInferResponse.FromString(body)
        return {
            each.name: np.frombuffer(raw, Datatype.parse(each.datatype).dtype).reshape(each.shape)
            for each, raw in zip(message.outputs, message.raw_output_contents, strict=True)
        }


@dataclass(frozen=True, slots=True)
class PlainJson:
    """One flat list per input and output: for servers whose JSON is whatever their user makes of it."""

    path: str
    wire: Wire = Wire.JSON

    def encode(self, feeds: Feeds) -> tuple[bytes, Mapping[str, str]]:
        """See `WireFormat.encode`."""
        document = {name: array.ravel().tolist() for name, array in feeds.items()}
        return json.dumps(document).encode(), {"Content-Type": "application/json"}

    def decode(self, body: bytes, headers: Mapping[str, str], *, expected: Feeds) -> Feeds:
        """See `WireFormat.decode`."""
        found = json.loads(body)
        return {name: np.array(found[name], array.dtype).reshape(array.shape) for name, array in expected.items()}


@dataclass(frozen=True, slots=True)
class TorchServeGrpc:
    """TorchServe's own ``Predictions``: a map of raw bytes in, the bytes of all outputs one after the other out."""

    model: str
    wire: Wire = Wire.GRPC
    path: str = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"

    def encode(self, feeds: Feeds) -> tuple[bytes, Mapping[str, str]]:
        """See `WireFormat.encode`.

        The message is written by hand: ``PredictionsRequest {string model_name = 1; map<string, bytes> input = 3;}``.
        """
        entries = [_field(1, name.encode()) + _field(2, array.tobytes()) for name, array in feeds.items()]
        return _field(1, self.model.encode()) + b"".join(_field(3, entry) for entry in entries), {}

    def decode(self, body: bytes, headers: Mapping[str, str], *, expected: Feeds) -> Feeds:
        """See `WireFormat.decode`; the message is ``PredictionResponse {bytes prediction = 1;}``."""
        outputs, rest = {}, body[len(body) - sum(array.nbytes for array in expected.values()) :]
        if body != _field(1, rest):
            raise ValueError(f"expected {len(rest)} bytes of outputs, got the message {body[:80]!r}")
        for name, array in expected.items():
            outputs[name] = np.frombuffer(rest[: array.nbytes], array.dtype).reshape(array.shape)
            rest = rest[array.nbytes :]
        return outputs


def _declared(name: str, array: Array) -> dict[str, object]:
    return {"name": name, "shape": list(array.shape), "datatype": str(Datatype.of(array.dtype))}


def _field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes."""
    length, encoded = len(content), b""
    while length >= 128:
        encoded += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([length]) + content
