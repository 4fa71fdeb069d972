"""A small Open Inference Protocol client over HTTP and gRPC, for `infer`, `tiers` and the self-test."""

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import grpc
import orjson

from serveprune.errors import InvalidArgument, ServePruneError, Unavailable
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serveprune.oip.binary_tensors import decode_binary, encode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Tensor

_TIMEOUT_SECONDS = 120.0
_PARAMETER_FIELDS = {bool: "bool_param", float: "double_param", str: "string_param"}
_UNLIMITED_MESSAGES = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to one inference."""

    outputs: tuple[Tensor, ...]
    tier: str
    tier_reason: str


class ServerError(ServePruneError):
    """The server answered with an error; the message is the server's own."""


class Client(Protocol):
    """Sends one inference and waits for the answer."""

    def infer(
        self, model: str, tensors: Sequence[Tensor], *, parameters: Mapping[str, Any], version: str | None = None
    ) -> Answer:
        """Send tensors, as they are, to a model.

        Raises:
            ServerError: The server refused, or (over gRPC) cannot be reached.
            Unavailable: The server cannot be reached.
        """
        ...


class HttpClient:
    """Speaks HTTP with binary tensors both ways."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidArgument(f"expected a URL such as http://127.0.0.1:8080, got {url!r}")
        self._url, self._host, self._port = url, parts.hostname, parts.port or 80

    def infer(
        self, model: str, tensors: Sequence[Tensor], *, parameters: Mapping[str, Any], version: str | None = None
    ) -> Answer:
        """See `Client.infer`."""
        raw = [bytes(encode_binary(tensor.array, tensor.datatype)) for tensor in tensors]
        head = orjson.dumps(
            {
                "parameters": {**parameters, "binary_data_output": True},
                "inputs": [
                    {
                        "name": tensor.name,
                        "datatype": tensor.datatype,
                        "shape": tensor.shape,
                        "parameters": {"binary_data_size": len(data)},
                    }
                    for tensor, data in zip(tensors, raw, strict=True)
                ],
            }
        )
        body, headers = self.request(
            "POST",
            f"/v2/models/{quote(model)}{f'/versions/{quote(version)}' if version else ''}/infer",
            body=b"".join([head, *raw]),
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        header_length = int(headers.get("Inference-Header-Content-Length", len(body)))
        answer = json.loads(body[:header_length])
        outputs, offset = [], header_length
        for output in answer["outputs"]:
            size = output["parameters"]["binary_data_size"]
            chunk = memoryview(body)[offset : offset + size]
            datatype = Datatype.parse(output["datatype"])
            outputs.append(decode_binary(chunk, name=output["name"], datatype=datatype, shape=output["shape"]))
            offset += size
        said = answer["parameters"]
        return Answer(tuple(outputs), said["tier"], said["tier_reason"])

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, http.client.HTTPMessage]:
        """Send one request and return the body and headers of the answer.

        Raises:
            ServerError: The status is not 200.
            Unavailable: The server cannot be reached.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body=body or None, headers=dict(headers or {}))
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"no answer from {self._url}: {error}; is the server running?") from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise ServerError(f"HTTP {response.status}: {_error_text(answer)}")
        return answer, response.headers


class GrpcClient:
    """Speaks gRPC with raw contents both ways."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=_UNLIMITED_MESSAGES)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def infer(
        self, model: str, tensors: Sequence[Tensor], *, parameters: Mapping[str, Any], version: str | None = None
    ) -> Answer:
        """See `Client.infer`."""
        request = pb.ModelInferRequest(
            model_name=model,
            model_version=version or "",
            inputs=[
                pb.ModelInferRequest.InferInputTensor(
                    name=tensor.name, datatype=str(tensor.datatype), shape=tensor.shape
                )
                for tensor in tensors
            ],
            raw_input_contents=[bytes(encode_binary(tensor.array, tensor.datatype)) for tensor in tensors],
        )
        for name, value in parameters.items():
            setattr(request.parameters[name], _PARAMETER_FIELDS[type(value)], value)
        try:
            answer = self._stub.ModelInfer(request, timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise ServerError(f"gRPC {error.code().name}: {error.details()}") from error
        outputs = tuple(
            decode_binary(
                memoryview(raw), name=output.name, datatype=Datatype.parse(output.datatype), shape=output.shape
            )
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        )
        said = answer.parameters
        return Answer(outputs, said["tier"].string_param, said["tier_reason"].string_param)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
