"""`serveprune rollout` and `serveprune config reload`, as an operator runs them beside a server."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from contract.grpc.messages import of_arrays

from e2e.conftest import Serve
from e2e.deployment import fashion_images, write_fashion
from e2e.server_process import COMMAND, PATIENCE_SECONDS, ServerProcess, wait_until
from e2e.test_reload import adders
from serveprune.frontends.grpc.pb import serveprune_admin_pb2 as pb
from serveprune.frontends.grpc.pb.serveprune_admin_pb2_grpc import AdminServiceStub

TOKEN = "an-operators-own-token-01"
ADMIN = {
    "http": "127.0.0.1:0",
    "grpc": "127.0.0.1:0",
    "tokens": {"environment": "SERVEPRUNE_ADMIN_TOKEN"},
}
ENVIRONMENT = {"SERVEPRUNE_ADMIN_TOKEN": TOKEN}
CANARY = {
    "tier": "int8",
    "steps": [{"setWeight": 20}, {"pause": {}}, {"setWeight": 50}, {"pause": {}}],
    "guards": {"max_error_ratio": 0.05, "min_samples": 20, "window": "5m"},
}


def run(server: ServerProcess, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words, "--admin", f"http://{server.endpoints['admin_http']}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, "SERVEPRUNE_ADMIN_TOKEN": token, "COLUMNS": "120"},
    )


def done(server: ServerProcess, *words: str) -> str:
    finished = run(server, *words)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def status(server: ServerProcess) -> dict[str, Any]:
    """Return how the rollout stands, asked without the cost of a process."""
    answer = httpx.get(
        f"http://{server.endpoints['admin_http']}/admin/rollouts/fashion",
        headers={"Authorization": f"Bearer {TOKEN}"},
        trust_env=False,
        timeout=PATIENCE_SECONDS,
    )
    told: dict[str, Any] = answer.json()
    return told


@contextmanager
def asked(server: ServerProcess, folder: Path) -> Iterator[list[str]]:
    """Have a client ask without a tier, one request after the other, and give the tiers that answered."""
    request = of_arrays("fashion", image=fashion_images(folder, 1))
    tiers: list[str] = []
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            tiers.append(server.stub.ModelInfer(request).parameters["tier"].string_param)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield tiers
    finally:
        stopped.set()
        thread.join()


def share_of_canary(tiers: list[str], *, latest: int = 200) -> float:
    return tiers[-latest:].count("int8") / latest


def wait_share(tiers: list[str], low: float, high: float) -> None:
    """Wait until the latest requests were spread like this, all of them after this moment."""
    begun = len(tiers)
    wait_until(
        lambda: len(tiers) >= begun + 300 and low <= share_of_canary(tiers) <= high,
        what=f"the canary gets {low} to {high}",
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_operator_moves_a_canary_from_the_command_line(
    serve: Serve, tmp_path: Path, fashion_store: Path, processes: int
) -> None:
    file = write_fashion(
        tmp_path,
        stored=fashion_store,
        deployments={"fashion": {"canary": CANARY}},
        server={"admin": ADMIN, "processes": processes},
    )
    running = serve(file, environment=ENVIRONMENT).wait_open().wait_ready("fashion")
    assert f"admin http://{running.endpoints['admin_http']}" in running.log
    with asked(running, tmp_path) as tiers:
        wait_until(lambda: status(running)["canary_percent"] == 20, what="the first step is done")
        wait_share(tiers, 0.1, 0.3)
        shown = done(running, "rollout", "status")
        assert "20 % > [pause until resumed," in shown
        assert "max_error_ratio" in shown

        assert done(running, "rollout", "resume", "fashion", "--who", "ada").startswith("fashion: progressing")
        wait_until(lambda: status(running)["canary_percent"] == 50, what="the next step is done")
        wait_share(tiers, 0.35, 0.65)
        paused = run(running, "rollout", "pause", "fashion", "--why", "a look first")
        assert paused.returncode == 0
        again = run(running, "rollout", "pause", "fashion")
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr.startswith("error: HTTP 409: expected a rollout that goes on")

        promoted = json.loads(done(running, "rollout", "promote", "fashion", "--json"))
        assert (promoted["phase"], promoted["canary_percent"]) == ("promoted", 100)
        wait_share(tiers, 1, 1)
        aborted = done(running, "rollout", "abort", "fashion", "--who", "ada", "--why", "too early")
        assert aborted == "fashion: aborted, 0 % to int8; aborted by ada: too early\n"
        wait_share(tiers, 0, 0)

    unknown = run(running, "rollout", "status", "nobody")
    assert (unknown.returncode, unknown.stderr[:16]) == (1, "error: HTTP 404:")
    wrong = run(running, "rollout", "abort", "fashion", token="nobody-knows-this-one")
    assert (wrong.returncode, wrong.stderr[:16]) == (1, "error: HTTP 401:")
    none = run(running, "rollout", "status", token="")
    assert (none.returncode, none.stderr[:36]) == (2, "error: expected an operator's token,")
    events = [json.loads(line) for line in (tmp_path / "store" / "audit.jsonl").read_text().splitlines()]
    assert [(line["operation"], line["code"]) for line in events if line["event"] == "request"] == [
        ("rollout.resume", "OK"),
        ("rollout.pause", "OK"),
        ("rollout.pause", "FAILED_PRECONDITION"),
        ("rollout.promote", "OK"),
        ("rollout.abort", "OK"),
    ]
    assert [line["asked"] for line in events if line["event"] == "refusal"] == ["POST /admin/rollouts/fashion/abort"]
    assert TOKEN not in running.log + json.dumps(events) + running.metrics_text()
    assert running.metric("serveprune_admin_requests_total", operation="rollout.promote", code="OK") == 1
    assert running.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_config_is_reloaded_from_the_command_line(serve: Serve, tmp_path: Path, processes: int) -> None:
    with adders(lambda file: serve(file, environment=ENVIRONMENT), tmp_path, processes=processes, admin=ADMIN) as (
        running,
        config,
    ):
        assert done(running, "config", "reload") == "nothing has changed\n"
        config.write(models={**config.content["models"], "add3": {"source": {"onnx": "add3.onnx"}}})
        told = run(running, "config", "reload")
        # The file is watched as well, so the change may have been found before.
        assert (told.returncode, told.stderr) == (0, "")
        assert "models.add3: added" in told.stdout or told.stdout == "nothing has changed\n"
        wait_until(lambda: "models.add3: added" in running.log, what="the change is applied")

        config.write("models: [")
        rejected = run(running, "config", "reload")
        assert rejected.returncode == 2
        assert "serveprune.yaml:1" in rejected.stdout
        with grpc.insecure_channel(running.endpoints["admin_grpc"], options=[("grpc.enable_http_proxy", 0)]) as channel:
            said = AdminServiceStub(channel).GetConfig(
                pb.GetConfigRequest(), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=PATIENCE_SECONDS
            )
        assert said.outcome == "rejected"
        assert said.problems[0] in rejected.stdout
        assert json.loads(run(running, "rollout", "status", "--json").stdout) == {"rollouts": []}
        assert running.stop() == 0


def test_server_does_not_start_without_tokens_of_operators(serve: Serve, tmp_path: Path) -> None:
    for admin, environment, said in (
        ({"http": "127.0.0.1:0"}, {}, "server.admin.tokens: expected this key, got none"),
        (ADMIN, {"SERVEPRUNE_ADMIN_TOKEN": "too-brief"}, "expected a token of 16"),
    ):
        file = write_fashion(tmp_path, server={"admin": admin})
        failed = serve(file, environment=environment)
        assert failed.process.wait(PATIENCE_SECONDS) == 2
        assert said in failed.log
        assert "too-brief" not in failed.log
