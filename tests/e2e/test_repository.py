"""Models of a folder are loaded, replaced and unloaded while clients ask them."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import yaml
from contract.grpc.messages import of_arrays

from e2e.conftest import Serve
from e2e.server_process import ServerProcess, wait_until
from e2e.test_reload import Callers, Config, answers, ask, write_adder
from serveprune.frontends.grpc.pb import open_inference_pb2 as pb

LOADED = "/v2/repository/models/{}/load"


class Repository:
    """A folder of models that add numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, addend: float, *, version: str | None = None, entry: Any = None) -> None:
        """Write a model as careful people do: beside its place, then in one step."""
        place = self.folder / name / version if version else self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        write_adder(place / ".new.onnx", addend)
        (place / ".new.onnx").replace(place / "model.onnx")
        if entry is not None:
            (self.folder / name / "serveprune.yaml").write_text(yaml.safe_dump(entry))


def serve_repository(
    serve: Serve, folder: Path, *, processes: int = 1, **settings: Any
) -> tuple[ServerProcess, Repository, Config]:
    repository = Repository(folder / "models")
    repository.folder.mkdir(exist_ok=True)
    write_adder(folder / "outside.onnx", 9)
    file = folder / "serveprune.yaml"
    content = {
        "store": {"path": "store"},
        "models": {"outside": {"source": {"onnx": "outside.onnx"}}},
        "repository": {"path": "models", **settings},
        "server": {"processes": processes},
    }
    file.write_text(yaml.safe_dump(content))
    server = serve(file).wait_open().wait_ready("outside")
    wait_until(lambda: server.metric("serveprune_processes") == processes, what="all processes listen")
    return server, repository, Config(file)


def change(server: ServerProcess, action: str, name: str) -> httpx.Response:
    return server.http.post(f"/v2/repository/models/{name}/{action}")


def load(server: ServerProcess, name: str) -> None:
    answer = change(server, "load", name)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("processes", [1, 2])
def test_tritonclient_loads_and_unloads(serve: Serve, tmp_path: Path, clients_python: Path, processes: int) -> None:
    server, repository, _ = serve_repository(serve, tmp_path, processes=processes, mode="explicit")
    repository.write("three", 3)
    (repository.folder / "broken").mkdir()
    (repository.folder / "broken" / "model.onnx").write_bytes(b"no graph")
    script = Path(__file__).with_name("clients") / "triton_repository.py"
    finished = subprocess.run(
        [str(clients_python), str(script), server.endpoints["http"], server.endpoints["grpc"]],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert finished.returncode == 0, finished.stderr + server.log
    assert finished.stdout.strip() == "content"


@pytest.mark.parametrize("processes", [1, 2])
def test_model_is_replaced_and_unloaded_under_load_and_no_answer_is_wrong(
    serve: Serve, tmp_path: Path, processes: int
) -> None:
    (tmp_path / "models").mkdir()
    Repository(tmp_path / "models").write("adder", 1)
    server, repository, _ = serve_repository(
        serve, tmp_path, processes=processes, mode="explicit", load_at_start=["adder"]
    )
    server.wait_ready("adder")
    with Callers(server, "adder") as callers:
        load(server, "adder")
        for addend in (2, 3):
            repository.write("adder", addend)
            load(server, "adder")
            # Whoever has waited for the load gets the new graph.
            assert ask(server, "adder") == addend
        assert set(callers.seen) <= {"1.0", "2.0", "3.0"}, callers.seen

        (repository.folder / "adder" / "model.onnx").write_bytes(b"no graph")
        broken = change(server, "load", "adder")
        assert broken.status_code in (400, 409), broken.text
        assert "adder" in broken.json()["error"]
        assert ask(server, "adder") == 3.0
        assert set(callers.seen) <= {"1.0", "2.0", "3.0"}, callers.seen

        assert change(server, "unload", "adder").status_code == 200
        gone = server.http.get("/v2/models/adder")
        assert (gone.status_code, ask(server, "adder")) == (404, None)
        time.sleep(0.5)
    unexpected = {said for said in callers.seen if said not in ("1.0", "2.0", "3.0") and "no model named" not in said}
    assert not unexpected, unexpected
    assert server.http.get("/v2/health/ready").status_code == 200
    assert server.metric("serveprune_tier_ready", model="adder") == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_versions_of_a_folder_come_and_go(serve: Serve, tmp_path: Path, processes: int) -> None:
    server, repository, _ = serve_repository(serve, tmp_path, processes=processes, mode="explicit")
    repository.write("adder", 1, version="1", entry={"version_policy": "all"})
    load(server, "adder")
    repository.write("adder", 2, version="2")
    with Callers(server, "adder") as callers:
        load(server, "adder")
        assert answers(server, "adder", "1", "2") == {"1": 1.0, "2": 2.0}
        wait_until(lambda: callers.seen["2.0"] > 20, what="the higher version answers")
        shutil.rmtree(repository.folder / "adder" / "2")
        load(server, "adder")
        assert server.http.get("/v2/models/adder").json()["versions"] == ["1"]
        assert ask(server, "adder") == 1.0
    assert set(callers.seen) == {"1.0", "2.0"}, callers.seen


@pytest.mark.parametrize("processes", [1, 2])
def test_loads_of_one_model_at_once_share_their_outcome(serve: Serve, tmp_path: Path, processes: int) -> None:
    server, repository, _ = serve_repository(serve, tmp_path, processes=processes, mode="explicit")
    repository.write("adder", 1)

    def over_grpc(name: str) -> str:
        try:
            server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))
        except grpc.RpcError as error:
            return str(error.details())
        return ""

    def over_http(name: str) -> str:
        answer = httpx.post(f"{server.url}{LOADED.format(name)}", timeout=120, trust_env=False)
        return "" if answer.status_code == 200 else str(answer.json()["error"])

    (repository.folder / "broken").mkdir()
    (repository.folder / "broken" / "model.onnx").write_bytes(b"no graph")
    with ThreadPoolExecutor(8) as threads:
        for name in ("adder", "broken"):
            said = set(threads.map(lambda call, name=name: call(name), [over_http, over_grpc] * 4))
            assert len(said) == 1, said
            assert (said == {""}) == (name == "adder"), said
    assert ask(server, "adder") == 1.0
    assert server.log.count("adder: loaded from the model repository") == 1


def test_config_file_that_names_a_loaded_model_is_rejected(serve: Serve, tmp_path: Path) -> None:
    server, repository, config = serve_repository(serve, tmp_path, mode="explicit")
    repository.write("adder", 1)
    load(server, "adder")
    whole = dict(config.content["models"])
    config.write(models={**whole, "adder": whole["outside"]})
    wait_until(lambda: "one of the config file" in server.log, what="the log says why")
    assert ask(server, "adder") == 1.0
    config.write(models={**whole, "other": whole["outside"]})
    wait_until(lambda: ask(server, "other") == 9.0, what="the file is applied beside the loaded model")
    assert ask(server, "adder") == 1.0


class SlowCopy(threading.Thread):
    """Copies a file in pieces, as over a slow network, into its place."""

    def __init__(self, source: Path, target: Path, *, seconds: float) -> None:
        super().__init__()
        self._content, self._target, self._seconds = source.read_bytes(), target, seconds

    def run(self) -> None:
        pieces: Iterator[bytes] = (self._content[i : i + 8] for i in range(0, len(self._content), 8))
        with self._target.open("wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                time.sleep(self._seconds * len(piece) / len(self._content))


@pytest.mark.parametrize("processes", [1, 2])
def test_folder_is_followed_and_nothing_is_served_half(serve: Serve, tmp_path: Path, processes: int) -> None:
    (tmp_path / "models").mkdir()
    Repository(tmp_path / "models").write("first", 1)
    time.sleep(0.6)
    server, repository, _ = serve_repository(serve, tmp_path, processes=processes, mode="poll", poll_seconds=0.5)
    server.wait_ready("first")
    assert change(server, "load", "first").status_code == 409

    write_adder(tmp_path / "two.onnx", 2)
    (repository.folder / "second").mkdir()
    copy = SlowCopy(tmp_path / "two.onnx", repository.folder / "second" / "model.onnx", seconds=4)
    copy.start()
    while copy.is_alive():
        assert ask(server, "second") is None
        time.sleep(0.05)
    wait_until(lambda: ask(server, "second") == 2.0, what="the copied model is served")
    assert "of second" not in server.log, server.log

    with Callers(server, "second") as callers:
        (repository.folder / "second" / "model.onnx").write_bytes(b"no graph")
        wait_until(lambda: "load of second" in server.log, what="the broken model is refused")
        repository.write("second", 3)
        wait_until(lambda: callers.seen["3.0"] > 20, what="the mended model is served")
        assert set(callers.seen) == {"2.0", "3.0"}, callers.seen
    shutil.rmtree(repository.folder / "second")
    wait_until(lambda: ask(server, "second") is None, what="the removed model is gone")
    assert ask(server, "first") == 1.0
    assert server.http.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("action", ["load", "unload"])
def test_nothing_is_loaded_by_request_by_default(serve: Serve, tmp_path: Path, action: str) -> None:
    server, repository, _ = serve_repository(serve, tmp_path)
    repository.write("adder", 1)
    refused = change(server, action, "adder")
    assert (refused.status_code, "repository.mode: explicit" in refused.text) == (501, True), refused.text
    request = of_arrays("adder")
    assert server.grpc_refusal(request).code.name == "NOT_FOUND"


def test_process_that_is_replaced_has_what_was_loaded(serve: Serve, tmp_path: Path) -> None:
    server, repository, _ = serve_repository(serve, tmp_path, mode="explicit", processes=2)
    repository.write("adder", 1)
    load(server, "adder")
    repository.write("adder", 2)
    load(server, "adder")
    serving = [
        child
        for child in psutil.Process(server.pid).children()
        if "serveprune.cli.serving_process" in " ".join(child.cmdline())
    ]
    serving[0].kill()
    wait_until(lambda: server.metric("serveprune_process_restarts_total") == 1, what="its death is noticed")
    wait_until(lambda: server.metric("serveprune_processes") == 2, what="it is replaced")
    for _ in range(20):
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
            answer = client.post("/v2/models/adder/infer", json=body)
            assert answer.json()["outputs"][0]["data"][0] == 2.0
    assert change(server, "unload", "adder").status_code == 200
    assert ask(server, "adder") is None
