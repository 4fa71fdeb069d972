import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from serveprune.config.server import Address
from serveprune.errors import FailedPrecondition, Unavailable
from serveprune.handlers.torchserve.hosting.readiness import Standing, Watch

NOBODY = Address("127.0.0.1", 1)


class _Management(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Bearer secret" and self.path == "/models/m.1"
        workers = [{"status": "READY"}, {"status": "UNLOADING"}]
        body = json.dumps([{"minWorkers": 2, "workers": workers}] if known else {"code": 400}).encode()
        self.send_response(200 if known else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def management() -> Iterator[Address]:
    """What TorchServe's management API answers while the second of two workers loads."""
    with HTTPServer(("127.0.0.1", 0), _Management) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Address(*server.server_address[:2])  # type: ignore[arg-type]
        server.shutdown()
        thread.join()


def _log(folder: Path, name: str, text: str) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / name).write_text(text)


def test_model_is_ready_when_all_workers_have_loaded_it() -> None:
    assert Standing(ready=2, wanted=2).is_ready
    assert not Standing(ready=1, wanted=2).is_ready
    assert not Standing(ready=0, wanted=0).is_ready


def test_standing_counts_the_workers_that_are_ready(management: Address, tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text('{"management": {"key": "secret"}}')
    assert Watch(management, folder=tmp_path, token_auth=True).standing("m.1") == Standing(ready=1, wanted=2)


def test_standing_is_unavailable_when_the_model_is_not_there_yet(management: Address, tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text('{"management": {"key": "secret"}}')
    with pytest.raises(Unavailable, match="answers 400"):
        Watch(management, folder=tmp_path, token_auth=True).standing("other")


def test_standing_is_unavailable_while_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="token is not there yet"):
        Watch(NOBODY, folder=tmp_path, token_auth=True).standing("m")
    with pytest.raises(Unavailable, match="does not answer"):
        Watch(NOBODY, folder=tmp_path, token_auth=False).standing("m")


def test_hope_remains_when_a_worker_ended_once(tmp_path: Path) -> None:
    _log(tmp_path, "torchserve.log", "Retry worker: 9000 in 1 seconds.\nRetry worker: 9001 in 1 seconds.\n")
    Watch(NOBODY, folder=tmp_path, token_auth=True).expect_hope()


def test_no_hope_remains_when_a_worker_ends_again_and_its_last_error_is_told(tmp_path: Path) -> None:
    _log(tmp_path, "torchserve.log", "Retry worker: 9000 in 1 seconds.\nRetry worker: 9000 in 1 seconds.\n")
    _log(
        tmp_path,
        "workers.log",
        "2026-01-01T00:00:00,000 W-9000-m_1-stdout -   File x\n"
        "2026-01-01T00:00:00,000 W-9000-m_1-stdout - serveprune.errors.ConfigError: model-config.yaml: no source\n",
    )
    with pytest.raises(FailedPrecondition, match=r"whenever it is started: ConfigError: model-config\.yaml: no source"):
        Watch(NOBODY, folder=tmp_path, token_auth=True).expect_hope()


def test_no_hope_remains_when_an_archive_was_refused(tmp_path: Path) -> None:
    _log(tmp_path, "torchserve.log", "x [WARN ] ModelServer - Failed to load model: m.mar\n")
    with pytest.raises(FailedPrecondition, match=r"TorchServe: Failed to load model: m\.mar"):
        Watch(NOBODY, folder=tmp_path, token_auth=True).expect_hope()
