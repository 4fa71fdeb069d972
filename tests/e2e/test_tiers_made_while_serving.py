"""A store that is empty at the start: dense serves while int8 is built, whatever becomes of the build."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.cases import Case, WireTensor
from contract.grpc.messages import of_arrays
from contract.http.messages import binary_message, path

from e2e.conftest import Serve
from e2e.deployment import fashion_images, write_fashion
from e2e.server_process import ServerProcess, is_alive, wait_until


def ask(server: ServerProcess, model: str, **parameters: Any) -> Any:
    image = WireTensor.of("image", fashion_images(server.folder, 1))
    case = Case("", model, (image,), parameters=parameters)
    body, headers = binary_message(case)
    return server.http.post(path(case), content=body, headers=headers)


def test_dense_serves_until_the_tier_is_built_and_then_the_tier_does(serve: Serve, tmp_path: Path) -> None:
    server = serve(write_fashion(tmp_path)).wait_open()
    server.wait_state("fashion", "dense", "ready")
    server.wait_state("fashion", "int8", "building")
    child = server.build_child()
    child.suspend()  # so that nothing below is a race

    early = ask(server, "fashion@int8")
    assert early.status_code == 200
    assert early.headers["x-compression-tier"] == "dense"
    said = json.loads(early.content[: int(early.headers["inference-header-content-length"])])["parameters"]
    assert said["tier"] == "dense"
    assert "int8 is still being built" in said["tier_reason"]

    strict = ask(server, "fashion@int8", strict_tier=True)
    assert strict.status_code == 503
    assert int(strict.headers["retry-after"]) >= 1
    assert "still being built" in strict.json()["error"]
    message = of_arrays("fashion@int8", image=fashion_images(tmp_path, 1))
    message.parameters["strict_tier"].bool_param = True
    refusal = server.grpc_refusal(message)
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert int(refusal.trailing["retry-after"]) >= 1

    building = server.tiers("fashion")["int8"]
    assert building["state"] == "building"
    assert building["progress"]["stage"]
    assert 0 <= building["progress"]["fraction"] <= 1
    assert server.http.get("/v2/models/fashion/ready").status_code == 200
    assert server.http.get("/v2/models/fashion@int8/ready").status_code == 503
    assert server.metric("serveprune_tier_ready", model="fashion", tier="int8") == 0
    assert server.metric("serveprune_served_tier_total", tier="dense", reason="building") == 1

    child.resume()
    built = server.wait_state("fashion", "int8", "ready")
    assert built["metric"] == "top1_agreement"
    assert built["quality"]["top1_agreement"] >= 0.97
    assert built["quality"]["accuracy"] == pytest.approx(built["dense_quality"]["accuracy"], abs=0.02)
    assert built["speedup"] > 0
    assert built["bytes"] < server.tiers("fashion")["dense"]["bytes"] / 2
    assert built["built_here"] is True
    assert built["progress"] is None
    late = ask(server, "fashion@int8", strict_tier=True)
    assert late.headers["x-compression-tier"] == "int8"
    assert server.metric("serveprune_builds_total", tier="int8", outcome="built") == 1
    wait_until(lambda: not is_alive(child.pid), what="the build's process is gone")


def test_killed_build_is_a_failed_build_and_dense_serves_on(serve: Serve, dense_store: Path, tmp_path: Path) -> None:
    server = serve(write_fashion(tmp_path, stored=dense_store)).wait_open()
    child = server.build_child()
    wait_until(lambda: _stage(server) not in ("", "starting"), what="the build's process has begun to work")
    child.kill()

    failed = server.wait_state("fashion", "int8", "failed")
    assert "SIGKILL" in failed["reasons"][0]
    # Where it is in the store; what the machine's folders are called is nobody's business.
    assert not Path(failed["log"]).is_absolute()
    assert (tmp_path / "store" / failed["log"]).is_file()
    assert server.metric("serveprune_builds_total", model="fashion", tier="int8", outcome="failed") == 1

    answer = ask(server, "fashion@int8")
    assert answer.status_code == 200
    assert answer.headers["x-compression-tier"] == "dense"
    strict = ask(server, "fashion@int8", strict_tier=True)
    assert strict.status_code == 409
    assert "SIGKILL" in strict.json()["error"]
    assert server.stop() == 0


def test_build_out_of_memory_is_a_failed_build_and_dense_serves_on(
    serve: Serve, dense_store: Path, tmp_path: Path
) -> None:
    server = serve(write_fashion(tmp_path, stored=dense_store, builds={"max_memory_bytes": "32MiB"})).wait_open()

    failed = server.wait_state("fashion", "int8", "failed")

    assert "builds.max_memory_bytes" in failed["reasons"][0]
    assert ask(server, "fashion").headers["x-compression-tier"] == "dense"


def test_tier_refused_by_its_gate_is_listed_with_the_reason_and_never_served(
    serve: Serve, fashion_store: Path, tmp_path: Path
) -> None:
    gate = {"passes": [{"quantize": {"dtype": "int8", "scheme": "auto"}}], "gate": {"min_quality": 0.99999}}
    server = serve(write_fashion(tmp_path, stored=fashion_store, profiles={"int8": gate})).wait_open()

    refused = server.wait_state("fashion", "int8", "refused")

    assert "0.99999" in refused["reasons"][0]
    assert refused["quality"]["top1_agreement"] < 0.99999
    answer = ask(server, "fashion@int8")
    assert answer.headers["x-compression-tier"] == "dense"
    assert ask(server, "fashion@int8", strict_tier=True).status_code == 409
    entries = {entry["name"]: entry for entry in server.http.post("/v2/repository/index").json()}
    assert entries["fashion@int8"]["state"] == "UNAVAILABLE"
    assert "0.99999" in entries["fashion@int8"]["reason"]


def test_two_servers_on_one_store_build_a_tier_once(serve: Serve, tmp_path: Path) -> None:
    first_folder, second_folder = tmp_path / "first", tmp_path / "second"
    shared = {"path": str(tmp_path / "store")}
    servers = []
    for folder in (first_folder, second_folder):
        folder.mkdir()
        servers.append(serve(write_fashion(folder, store=shared)))
    for server in servers:
        server.wait_open().wait_ready("fashion")

    outcomes = {
        (tier, outcome): sum(server.metric("serveprune_builds_total", tier=tier, outcome=outcome) for server in servers)
        for tier in ("dense", "int8")
        for outcome in ("built", "cached", "failed")
    }
    assert outcomes["dense", "built"] == outcomes["int8", "built"] == 1
    assert outcomes["dense", "failed"] == outcomes["int8", "failed"] == 0
    image = fashion_images(first_folder, 1)
    answers = [server.stub.ModelInfer(of_arrays("fashion@int8", image=image)) for server in servers]
    assert answers[0].raw_output_contents == answers[1].raw_output_contents


def _stage(server: ServerProcess) -> str:
    progress = server.tiers("fashion")["int8"]["progress"]
    return str(progress["stage"]) if progress else ""
