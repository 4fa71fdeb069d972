import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

HEALTHY, UNHEALTHY, BAD_INPUT = 0, 1, 2


def health(*words: object, endpoints_file: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {} if endpoints_file is None else {"SERVEPRUNE_ENDPOINTS_FILE": str(endpoints_file)}
    environment["PYTHONPATH"] = ":".join(sys.path)
    command = [sys.executable, "-m", "serveprune", "health", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@contextmanager
def answering(**statuses: int) -> Iterator[str]:
    """A server that gives these answers to `live` and `ready`, and its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[self.path.rpartition("/")[2]])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield str(server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("live", "ready", "asked", "expected", "said"),
    [
        (200, 200, (), HEALTHY, "ready\n"),
        (200, 200, ("--ready",), HEALTHY, "ready\n"),
        (200, 503, (), HEALTHY, "live, not ready\n"),
        (200, 503, ("--ready",), UNHEALTHY, "live, not ready\n"),
        (503, 503, (), UNHEALTHY, ""),
        (404, 404, ("--ready",), UNHEALTHY, ""),
    ],
)
def test_exit_status_knows_live_from_ready(
    live: int, ready: int, asked: tuple[str, ...], expected: int, said: str
) -> None:
    with answering(live=live, ready=ready) as port:
        finished = health("--url", f"http://127.0.0.1:{port}", *asked)

    assert (finished.returncode, finished.stdout) == (expected, said)


def test_server_that_listens_everywhere_is_found_by_its_endpoints_file(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    with answering(live=200, ready=200) as port:
        file.write_text(json.dumps({"url": f"http://0.0.0.0:{port}"}), encoding="utf-8")
        assert health(endpoints_file=file).stdout == "ready\n"

    gone = health(endpoints_file=file)
    assert gone.returncode == UNHEALTHY
    assert "not live" in gone.stderr


def test_server_that_does_not_listen_yet_is_not_live(tmp_path: Path) -> None:
    finished = health("--endpoints-file", tmp_path / "none.json")

    assert finished.returncode == UNHEALTHY
    assert "none.json is not there; a server writes it once it listens" in finished.stderr


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"http": "0.0.0.0:8080"}'])
def test_endpoints_file_that_is_none_is_bad_input(tmp_path: Path, content: str) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(content, encoding="utf-8")

    finished = health(endpoints_file=file)

    assert finished.returncode == BAD_INPUT
    assert "as `serveprune serve --endpoints-file` writes it" in finished.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://:80", "http://x:99999"])
def test_url_that_is_none_is_bad_input(url: str) -> None:
    finished = health("--url", url)

    assert finished.returncode == BAD_INPUT
    assert "expected a URL such as http://127.0.0.1:8080" in finished.stderr


def test_probe_imports_nothing_of_the_server() -> None:
    code = (
        "import sys; sys.argv = ['serveprune', 'health', '--help']\n"
        "import serveprune.__main__ as command\n"
        "try: command.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'grpc', 'numpy', 'onnxruntime', 'pydantic', 'torch', 'uvicorn', 'yaml'}))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert finished.stdout.splitlines()[-1] == "[]", finished.stderr
