"""Both front ends, as they are with TLS and tokens, and clients of them."""

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import orjson

from contract.certificates import Issued
from contract.http.served import RawAnswer, post, read_answer
from contract.numpy_plane import NumpyPlane
from serveprune.config.security import TlsConfig, TokensConfig
from serveprune.config.server import ServerConfig
from serveprune.errors import Code
from serveprune.frontends.authorization import Authorization, watched_tokens
from serveprune.frontends.certificates import watched_certificate
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serveprune.frontends.grpc.server import GrpcFrontend
from serveprune.frontends.http.server import HttpFrontend
from serveprune.frontends.watched_files import Reload
from serveprune.observability.request_observer import RequestObserver

INFER = "/v2/models/identity_fp32/infer"
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1]}]}'


class Secured:
    """Running front ends over a data plane of numpy functions."""

    def __init__(
        self,
        *,
        tls: TlsConfig | None = None,
        tokens: TokensConfig | None = None,
        observer: RequestObserver | None = None,
        **limits: Any,
    ) -> None:
        self.plane = NumpyPlane()
        self.rejected: list[Code] = []
        self.reloads: list[tuple[str, Reload]] = []
        config = ServerConfig.model_validate({"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", **limits})
        self._certificate = watched_certificate(tls) if tls is not None else None
        self._tokens = watched_tokens(tokens, environment=os.environ) if tokens is not None else None
        options: dict[str, Any] = {
            "config": config,
            "on_rejected": self.rejected.append,
            "certificate": self._certificate,
            "authorization": Authorization(self._tokens) if self._tokens is not None else None,
            "observer": observer,
        }
        self.http = HttpFrontend(self.plane, self.plane, **options)
        self.grpc = GrpcFrontend(self.plane, self.plane, **options)
        self.http_address = self.http.start()
        self.grpc_address = self.grpc.start()

    def look(self, *, times: int = 1) -> None:
        """Look for changed files, as the server does about once a second."""
        for _ in range(times):
            for watched in (self._certificate, self._tokens):
                if watched is not None:
                    watched.look(lambda what, outcome: self.reloads.append((what, outcome)))

    def close(self) -> None:
        self.plane.release.set()
        self.http.stop(drain_seconds=5)
        self.grpc.stop(drain_seconds=0)
        self.plane.close()

    def connect_plain(self) -> socket.socket:
        return socket.create_connection(self.http_address, timeout=20)

    def connect(self, ca: Path, *, client: Issued | None = None, **options: Any) -> ssl.SSLSocket:
        """Open an encrypted connection to the HTTP port."""
        return client_context(ca, client=client, **options).wrap_socket(
            self.connect_plain(), server_hostname="localhost"
        )

    @contextlib.contextmanager
    def stub(self, ca: Path | None = None, *, client: Issued | None = None) -> Iterator[Any]:
        """Open a channel of its own to the gRPC port, encrypted where there is an authority."""
        target = f"localhost:{self.grpc_address.port}"
        # Only IPv4 is listened on; "localhost" is what the certificate is for.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if ca is None:
            channel = grpc.insecure_channel(target, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(
                ca.read_bytes(),
                client.key.read_bytes() if client else None,
                client.certificate.read_bytes() if client else None,
            )
            channel = grpc.secure_channel(target, credentials, options=options)
        with channel:
            yield GRPCInferenceServiceStub(channel)


def client_context(ca: Path, *, client: Issued | None = None, **options: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    for name, value in options.items():
        setattr(context, name, value)
    return context


@contextlib.contextmanager
def secured(**options: Any) -> Iterator[Secured]:
    running = Secured(**options)
    try:
        yield running
    finally:
        running.close()


def ask(connection: socket.socket, *, headers: Mapping[str, str] | None = None, path: str = INFER) -> RawAnswer:
    """Send one inference on a connection that stays open."""
    connection.sendall(post(path, BODY, headers=headers))
    return read_answer(connection)


def numbers(answer: RawAnswer) -> Any:
    return orjson.loads(answer.body)["outputs"][0]["data"]


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def get(connection: socket.socket, path: str, *, headers: Mapping[str, str] | None = None) -> RawAnswer:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
    response = http.client.HTTPResponse(connection)
    response.begin()
    return RawAnswer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
