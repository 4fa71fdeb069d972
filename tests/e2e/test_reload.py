"""The config file changes while the server runs, and clients see no more of it than they should."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import yaml
from contract.grpc.messages import of_arrays
from onnx import TensorProto, helper

from e2e.conftest import Serve
from e2e.deployment import INT8, fashion_images, write_fashion
from e2e.server_process import ServerProcess, wait_until

SUCCESSFUL = "serveprune_config_last_reload_successful"


def write_adder(file: Path, addend: float) -> None:
    """Write a graph that adds a number to its input."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    constant = helper.make_tensor("addend", TensorProto.FLOAT, [1], [addend])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "addend"], ["y"])], "adder", values[:1], values[1:], [constant]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)


class Config:
    """A config file that is changed as editors change it: another file takes its place."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: dict[str, Any] = yaml.safe_load(file.read_text())

    def write(self, text: str | None = None, **sections: Any) -> None:
        self.content |= sections
        new = self.file.with_suffix(".new")
        new.write_text(text if text is not None else yaml.safe_dump(self.content, sort_keys=False))
        new.replace(self.file)


class Callers:
    """Clients that ask one model without a pause, over HTTP and gRPC, and note what they get."""

    def __init__(self, server: ServerProcess, model: str) -> None:
        self.server, self.model = server, model
        self.seen: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=ask) for ask in (self._over_http, self._over_http, self._over_grpc)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: sum(self.seen.values()) > 20, what="callers are answered")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _over_http(self) -> None:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
        with httpx.Client(base_url=self.server.url, trust_env=False, timeout=60) as client:
            while not self._stopped.is_set():
                answer = client.post(f"/v2/models/{self.model}/infer", json=body)
                said = answer.json()["outputs"][0]["data"][0] if answer.status_code == 200 else answer.text
                self.seen[f"{said}"] += 1

    def _over_grpc(self) -> None:
        request = of_arrays(self.model, x=np.zeros((1, 4), np.float32))
        while not self._stopped.is_set():
            try:
                answer = self.server.stub.ModelInfer(request)
                self.seen[f"{np.frombuffer(answer.raw_output_contents[0], np.float32)[0]}"] += 1
            except Exception as error:
                self.seen[repr(error)] += 1


@contextmanager
def adders(serve: Serve, folder: Path, **server: Any) -> Iterator[tuple[ServerProcess, Config]]:
    """Serve two models that add 1 and 2."""
    for addend in (1, 2, 3):
        write_adder(folder / f"add{addend}.onnx", addend)
    models = {name: {"source": {"onnx": f"{name}.onnx"}, "tiers": ["dense"]} for name in ("add1", "add2")}
    file = folder / "serveprune.yaml"
    file.write_text(yaml.safe_dump({"store": {"path": "store"}, "server": server, "models": models}))
    server_process = serve(file).wait_open()
    server_process.wait_ready("add1", "add2")
    yield server_process, Config(file)


@pytest.mark.parametrize("processes", [1, 2])
def test_model_is_replaced_added_and_removed_and_no_request_is_lost(
    serve: Serve, tmp_path: Path, processes: int
) -> None:
    with adders(serve, tmp_path, processes=processes) as (server, config), Callers(server, "add1") as callers:
        models = config.content["models"]
        changed = {**models["add1"], "source": {"onnx": "add3.onnx"}, "version": "2"}
        config.write(models={"add1": changed, "added": models["add2"]})
        wait_until(lambda: callers.seen["3.0"] > 50, what="the new graph answers")
        wait_until(lambda: ask(server, "added") == 2.0, what="the added model answers")
        wait_until(lambda: ask(server, "add2") is None, what="the removed model is gone")

        assert set(callers.seen) == {"1.0", "3.0"}, callers.seen
        # Each process changes when it is ready, and these answers come from any of them.
        wait_until(lambda: server.http.get("/v2/models/add1").json()["versions"] == ["2"], what="version 1 is gone")
        wait_until(
            lambda: server.metric("serveprune_tier_ready", model="add1", version="2") == 1, what="version 2 is ready"
        )
        assert server.http.get("/v2/health/ready").status_code == 200
        assert server.metric(SUCCESSFUL) == 1


def answers(server: ServerProcess, model: str, *versions: str) -> dict[str, float]:
    """Return what each version makes of 0, over both protocols, which must agree."""
    zeros, said = np.zeros((1, 4), np.float32), {}
    for version in versions:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
        over_http = server.http.post(f"/v2/models/{model}/versions/{version}/infer", json=body).json()
        request = of_arrays(model, x=zeros)
        request.model_version = version
        over_grpc = server.stub.ModelInfer(request)
        assert over_http["model_version"] == over_grpc.model_version == version
        said[version] = over_http["outputs"][0]["data"][0]
        assert np.frombuffer(over_grpc.raw_output_contents[0], np.float32)[0] == said[version]
    return said


@pytest.mark.parametrize("processes", [1, 2])
def test_versions_come_and_go_and_no_request_is_lost(serve: Serve, tmp_path: Path, processes: int) -> None:
    with adders(serve, tmp_path, processes=processes) as (server, config), Callers(server, "add1") as callers:
        one = {"source": {"onnx": "add1.onnx"}, "max_batch_size": 8}
        three = {"source": {"onnx": "add3.onnx"}}
        add2 = config.content["models"]["add2"]
        config.write(models={"add1": {"versions": {"1": one, "3": three}, "version_policy": "all"}, "add2": add2})
        wait_until(lambda: callers.seen["3.0"] > 50, what="the higher version answers")
        wait_until(lambda: server.http.get("/v2/models/add1").json()["versions"] == ["1", "3"], what="both are listed")
        for _ in range(10):
            assert answers(server, "add1", "1", "3") == {"1": 1.0, "3": 3.0}
        refused = server.http.get("/v2/models/add1/versions/2")
        assert (refused.status_code, refused.json()["error"]) == (404, "model add1 has no version '2'; it has: 1, 3")
        assert server.http.get("/v2/models/add1/versions/1/tiers").json()["version"] == "1"
        wait_until(
            lambda: server.metric("serveprune_tier_ready", model="add1") == 2, what="the series show both versions"
        )

        seen = dict(callers.seen)
        config.write(models={"add1": {"versions": {"1": one, "3": three}, "version_policy": ["1"]}, "add2": add2})
        wait_until(lambda: callers.seen["1.0"] > seen["1.0"] + 50, what="the lower version answers again")
        wait_until(lambda: server.http.get("/v2/models/add1").json()["versions"] == ["1"], what="the other is gone")
        assert set(callers.seen) == {"1.0", "3.0"}, callers.seen
        assert server.metric(SUCCESSFUL) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_config_that_is_wrong_changes_nothing_until_it_is_mended(serve: Serve, tmp_path: Path, processes: int) -> None:
    with adders(serve, tmp_path, processes=processes) as (server, config), Callers(server, "add1") as callers:
        whole = dict(config.content)
        for text, said in (
            ("models: [", "expected"),
            (yaml.safe_dump({**whole, "models": {"add1": {"source": {"onnx": "none.onnx"}}}}), "none.onnx"),
            (yaml.safe_dump({**whole, "server": {**whole["server"], "executors": 7}}), "restart"),
        ):
            config.write(text)
            wait_until(lambda: server.metric(SUCCESSFUL) == 0, what="the config is rejected")
            wait_until(lambda said=said: said in server.log, what="the log says why")  # type: ignore[misc]
            assert ask(server, "add2") == 2.0
            config.write()
            wait_until(lambda: server.metric(SUCCESSFUL) == 1, what="the config is good again")

        assert set(callers.seen) == {"1.0"}, callers.seen


def test_config_is_read_again_on_sighup_and_through_a_symlink_that_is_swapped(serve: Serve, tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: the file is a link into a folder that is a link itself."""
    for addend in (1, 2):
        write_adder(tmp_path / f"add{addend}.onnx", addend)
    for name, addend in (("first", 1), ("second", 2)):
        (tmp_path / name).mkdir()
        models = {"adder": {"source": {"onnx": str(tmp_path / f"add{addend}.onnx")}, "tiers": ["dense"]}}
        content = {"store": {"path": str(tmp_path / "store")}, "models": models}
        (tmp_path / name / "serveprune.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "serveprune.yaml").symlink_to("..data/serveprune.yaml")
    server = serve(tmp_path / "serveprune.yaml").wait_open().wait_ready("adder")
    assert ask(server, "adder") == 1.0

    (tmp_path / "..new").symlink_to("second")
    (tmp_path / "..new").replace(tmp_path / "..data")
    wait_until(lambda: ask(server, "adder") == 2.0, what="the other folder's config is served")

    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: "nothing has changed" in server.log, what="the config is read again")
    assert ask(server, "adder") == 2.0


def test_changed_profile_is_built_while_the_former_tier_answers(
    serve: Serve, tmp_path: Path, server: ServerProcess
) -> None:
    file = write_fashion(tmp_path, stored=server.folder / "store")
    running, config = serve(file).wait_open().wait_ready("fashion"), Config(file)
    former = running.tiers("fashion")["int8"]["artifact"]
    images = fashion_images(tmp_path, 4)
    static = {**INT8, "passes": [{"quantize": {"dtype": "int8", "scheme": "static"}}]}

    config.write(profiles={"int8": static})

    def is_building() -> bool:
        renewal = running.tiers("fashion")["int8"]["renewal"]
        return renewal is not None and renewal["state"] == "building"

    wait_until(is_building, what="the changed profile is built")
    answer = running.stub.ModelInfer(of_arrays("fashion@int8", image=images))
    assert answer.parameters["tier"].string_param == "int8"
    assert answer.parameters["tier_reason"].string_param == "requested"
    wait_until(lambda: running.tiers("fashion")["int8"]["renewal"] is None, what="the renewed tier serves")
    assert running.tiers("fashion")["int8"]["artifact"] != former
    assert running.tiers("fashion")["int8"]["state"] == "ready"


def ask(server: ServerProcess, model: str) -> float | None:
    """Return what a model makes of 0; ``None`` when there is no such model."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
    answer = server.http.post(f"/v2/models/{model}/infer", json=body)
    return answer.json()["outputs"][0]["data"][0] if answer.status_code == 200 else None
