"""A front end in this process, and a client that can misbehave."""

import contextlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from contract.numpy_plane import NumpyPlane
from serveprune.config.server import Address, ServerConfig
from serveprune.errors import Code
from serveprune.frontends.http.server import HttpFrontend


@dataclass(frozen=True)
class Served:
    """A running front end over a data plane of numpy functions."""

    plane: NumpyPlane
    frontend: HttpFrontend
    address: Address
    client: httpx.Client
    rejected: list[Code] = field(default_factory=list)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)


@contextlib.contextmanager
def serve(**limits: Any) -> Iterator[Served]:
    plane = NumpyPlane()
    rejected: list[Code] = []
    config = ServerConfig(http=Address("127.0.0.1", 0), **limits)
    frontend = HttpFrontend(plane, plane, config=config, on_rejected=rejected.append)
    address = frontend.start()
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=20, trust_env=False) as client:
            yield Served(plane, frontend, address, client, rejected)
    finally:
        plane.release.set()
        frontend.stop(drain_seconds=5)
        plane.close()


@dataclass(frozen=True)
class RawAnswer:
    """A response read from a socket; ``closed`` when the server then ended the connection."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        document = orjson.loads(self.body)
        assert set(document) == {"error"}
        assert self.headers["content-type"] == "application/json"
        assert isinstance(document["error"], str)
        return document["error"]


def read_answer(connection: socket.socket) -> RawAnswer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return RawAnswer(response.status, headers, response.read())


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server has ended the connection, or has sent something instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def post(path: str, body: bytes, *, headers: Mapping[str, str] | None = None, length: int | None = None) -> bytes:
    """Return the bytes of a request, whose Content-Length may be a lie."""
    sent = {"Host": "x", "Content-Length": str(len(body) if length is None else length), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
