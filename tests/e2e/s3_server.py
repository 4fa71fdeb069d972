"""moto's S3 on loopback, as a process of its own."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from e2e.server_process import wait_until

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}

_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class S3Server:
    """A server with one bucket, which can be stopped and started again at the same port, empty."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(self._answers, what="the S3 server answers")
        self.http("PUT", "/bucket")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def http(
        self, method: str, path: str, *, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        # Whose signature the server does not check; without any name the owner's objects are closed.
        named = {"Authorization": _AUTHORIZATION, **(headers or {})}
        return httpx.request(method, f"{self.url}{path}", content=content, headers=named, trust_env=False, timeout=60)

    def objects(self, prefix: str = "") -> list[str]:
        text = self.http("GET", f"/bucket?list-type=2&prefix={prefix}").text
        return [part.partition("</Key>")[0] for part in text.split("<Key>")[1:]]

    def _answers(self) -> bool:
        try:
            return self.http("GET", "/").status_code < 500
        except httpx.TransportError:
            return False


def running(log: Path) -> Iterator[S3Server]:
    server = S3Server(log)
    try:
        server.start()
        yield server
    finally:
        server.stop()
