"""A small Open Inference Protocol client over HTTP and gRPC, for the commands that ask a server, and the self-test."""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import grpc
import orjson

from serveprune.cli.credentials import NO_CREDENTIALS, Credentials, credentials_of_own_server
from serveprune.config.server import ServerConfig
from serveprune.errors import InvalidArgument, ServePruneError, Unavailable
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serveprune.oip.binary_tensors import decode_binary, encode_binary
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Tensor
from serveprune.server import Endpoints

_TIMEOUT_SECONDS = 120.0
_PORTS = {"http": 80, "https": 443}
_TLS_PREFIX = "grpcs://"
_PARAMETER_FIELDS = {bool: "bool_param", float: "double_param", str: "string_param"}
_UNLIMITED_MESSAGES = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to one inference."""

    outputs: tuple[Tensor, ...]
    tier: str
    tier_reason: str


class ServerError(ServePruneError):
    """The server answered with an error; the message is the server's own.

    Attributes:
        status: Of HTTP.
        body: Of an answer over HTTP.
    """

    def __init__(self, message: str, *, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


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

    def __init__(self, url: str, *, credentials: Credentials = NO_CREDENTIALS) -> None:
        """Describe a server; nothing is sent yet.

        Args:
            url: Of scheme http or https.
            credentials: Shown to it.

        Raises:
            InvalidArgument: The URL is none, or the credentials are of no use with it.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in _PORTS or not parts.hostname:
            raise InvalidArgument(f"expected a URL such as http://127.0.0.1:8080, got {url!r}")
        _check_tls(credentials, encrypts=parts.scheme == "https", address=url, prefix="https://")
        self._url, self._host, self._port = url, parts.hostname, parts.port or _PORTS[parts.scheme]
        self._context = credentials.context() if parts.scheme == "https" else None
        self._token = credentials.token

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
        shown = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        connection = self._connection()
        try:
            connection.request(method, path, body=body or None, headers={**shown, **(headers or {})})
            response = connection.getresponse()
            answer = response.read()
        except ssl.SSLError as error:
            raise Unavailable(f"no TLS with {self._url}: {_tls_problem(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"no answer from {self._url}: {error}; is the server running?") from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise ServerError(f"HTTP {response.status}: {_error_text(answer)}", status=response.status, body=answer)
        return answer, response.headers

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._context)


class GrpcClient:
    """Speaks gRPC with raw contents both ways."""

    def __init__(self, address: str, *, credentials: Credentials = NO_CREDENTIALS) -> None:
        """Describe a server; nothing is sent yet.

        Args:
            address: ``host:port``, or ``grpcs://host:port`` for TLS.
            credentials: Shown to it.

        Raises:
            InvalidArgument: The credentials are of no use with this address.
        """
        encrypts, target = address.startswith(_TLS_PREFIX), address.removeprefix(_TLS_PREFIX)
        _check_tls(credentials, encrypts=encrypts, address=address, prefix=_TLS_PREFIX)
        self._channel = (
            _secure_channel(target, credentials)
            if encrypts
            else grpc.insecure_channel(target.removeprefix("grpc://"), options=_UNLIMITED_MESSAGES)
        )
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._metadata = () if credentials.token is None else (("authorization", f"Bearer {credentials.token}"),)

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
            answer = self._stub.ModelInfer(request, timeout=_TIMEOUT_SECONDS, metadata=self._metadata)
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


def own_http_client(config: ServerConfig, endpoints: Endpoints) -> HttpClient:
    """Return a client of a server of our own, with all that it asks of clients.

    Raises:
        ServePruneError: It asks for what cannot be found.
    """
    return HttpClient(url_of(config, endpoints), credentials=credentials_of_own_server(config))


def own_clients(config: ServerConfig, endpoints: Endpoints) -> tuple[HttpClient, GrpcClient]:
    """Return clients of both protocols of a server of our own.

    Raises:
        ServePruneError: It asks for what cannot be found.
    """
    prefix = "" if config.tls is None else _TLS_PREFIX
    grpc_client = GrpcClient(f"{prefix}{endpoints.grpc}", credentials=credentials_of_own_server(config))
    return own_http_client(config, endpoints), grpc_client


def url_of(config: ServerConfig, endpoints: Endpoints) -> str:
    """Return where a server is reached over HTTP."""
    return f"{'http' if config.tls is None else 'https'}://{endpoints.http}"


def _check_tls(credentials: Credentials, *, encrypts: bool, address: str, prefix: str) -> None:
    # A token would go out in plain text, to a server that was not asked who it is.
    if credentials.are_for_tls and not encrypts:
        raise InvalidArgument(
            f"expected an address that begins with {prefix}, for --ca-file and --cert are for TLS, got {address!r}"
        )


def _tls_problem(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}; --ca-file names those who vouch for it"
    return f"{error.reason or error}; is it an https:// server, and does it ask for a certificate (--cert, --key)?"


def _secure_channel(target: str, credentials: Credentials) -> Any:
    # Checks the files, of which the runtime would say nothing but that it cannot connect.
    context = credentials.context()
    files = (credentials.ca_file, credentials.key_file, credentials.cert_file)
    roots, key, chain = (file.read_bytes() if file is not None else None for file in files)
    options: list[tuple[str, Any]] = [*_UNLIMITED_MESSAGES]
    if credentials.is_own_server:
        options.append(("grpc.ssl_target_name_override", _name_in_certificate(target, context)))
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots, key, chain), options=options)


def _name_in_certificate(target: str, context: ssl.SSLContext) -> str:
    """Return a name that the certificate of our own server is for."""
    host, _, port = target.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            certificate: Mapping[str, Any] = encrypted.getpeercert() or {}
    except OSError as error:
        problem = _tls_problem(error) if isinstance(error, ssl.SSLError) else str(error)
        raise Unavailable(f"no TLS with {target}: {problem}") from error
    names = [name for _, name in certificate.get("subjectAltName", ())]
    names += [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return str(names[0]).replace("*", "any") if names else host


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
