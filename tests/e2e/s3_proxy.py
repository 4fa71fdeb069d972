"""A proxy in front of a server that speaks S3: refuses, hangs or damages what a test says, and passes the rest on."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'


class Fault(Enum):
    """What happens to a request instead of being passed on."""

    DENIED = auto()
    """It is answered with 403."""
    EXISTS = auto()
    """It is answered with 412, without saying which condition did not hold."""
    BUSY = auto()
    """It is answered with 503."""
    HUNG = auto()
    """It is never answered."""
    CUT = auto()
    """It is answered, and the connection closed after half of the body."""
    FLIPPED = auto()
    """It is answered, with one bit of the body another."""
    ANSWER_LOST = auto()
    """It is passed on, and the connection closed instead of an answer."""


_STATUSES = {Fault.DENIED: (403, "AccessDenied"), Fault.EXISTS: (412, "PreconditionFailed"), Fault.BUSY: (503, "Busy")}

Rule = Callable[[str, str], Fault | None]
"""Given a method, and a path with its query."""


class S3Proxy:
    """A proxy on loopback.

    Attributes:
        rule: Says what happens to a request.
        seen: Methods and paths of all requests, in order.
    """

    def __init__(self, upstream: str, *, port: int = 0) -> None:
        self.rule: Rule = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self._upstream = urlsplit(upstream).netloc
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def hits(self, part: str, *, method: str = "") -> int:
        """Return how many requests had this in their path."""
        return sum(part in path and method in ("", called) for called, path in list(self.seen))

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _pass_on(self) -> None:
                proxy.seen.append((self.command, self.path))
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                fault = proxy.rule(self.command, self.path)
                if fault is Fault.HUNG:
                    proxy._ended.wait()
                if proxy._ended.is_set():  # on a connection that was kept open
                    self.close_connection = True
                    return
                if fault in _STATUSES:
                    status, code = _STATUSES[fault]
                    content = b"" if self.command == "HEAD" else _ERROR.format(code=code).encode()
                    self._answer(status, [("Content-Type", "application/xml")], content, length=len(content))
                    return
                connection = http.client.HTTPConnection(proxy._upstream, timeout=60)
                connection.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if fault is Fault.ANSWER_LOST:
                    self.close_connection = True
                    return
                headers = [
                    (name, value)
                    for name, value in answer.getheaders()
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server")
                ]
                length = int(answer.getheader("Content-Length") or len(content))
                if fault is Fault.FLIPPED and content:
                    content = bytes([content[0] ^ 1]) + content[1:]
                if fault is Fault.CUT:
                    content = content[: len(content) // 2]
                    self.close_connection = True
                self._answer(answer.status, headers, content, length=length)

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, length: int) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815  (names that http.server looks for)

        return Handler


@contextmanager
def proxied(upstream: str, *, port: int = 0) -> Iterator[S3Proxy]:
    proxy = S3Proxy(upstream, port=port)
    try:
        yield proxy
    finally:
        proxy.close()
