"""Real rollouts on the demo's image classifier, in seconds."""

import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract.grpc.messages import of_arrays

from e2e.conftest import DemoRun, Serve
from e2e.deployment import FASHION, copy_store, fashion_images, write_fashion
from e2e.server_process import ServerProcess, wait_until

STEPS = [{"setWeight": 20}, {"pause": "1s"}, {"setWeight": 50}, {"pause": "1s"}, {"setWeight": 100}]
GUARDS = {"max_error_ratio": 0.01, "max_p99_ms": 20_000, "min_samples": 20, "window": "1m"}


class Callers:
    """Clients that name no tier, and note which one answered; no answer may fail."""

    def __init__(self, server: ServerProcess, *, clients: int = 2) -> None:
        self.server = server
        self.tiers: Counter[str] = Counter()
        self._request = of_arrays("fashion", image=fashion_images(server.folder, 1))
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._stopped.is_set():
            try:
                answer = self.server.stub.ModelInfer(self._request)
            except Exception as error:
                self.tiers[repr(error)] += 1
            else:
                self.tiers[answer.parameters["tier"].string_param] += 1


@pytest.fixture
def rolling(serve: Serve, tmp_path: Path, fashion_store: Path) -> Any:
    """Starts a server with a canary on its tier int8."""

    def start(*, processes: int = 1, **canary: Any) -> ServerProcess:
        deployment = {"canary": {"tier": "int8", "steps": STEPS, "guards": GUARDS, **canary}}
        file = write_fashion(
            tmp_path,
            stored=None if (tmp_path / "store").exists() else fashion_store,
            deployments={"fashion": deployment},
            server={"processes": processes},
        )
        return serve(file).wait_open().wait_ready("fashion")

    return start


@pytest.mark.slow
def test_canary_whose_answers_are_wrong_is_taken_back_by_its_live_agreement(
    serve: Serve, tmp_path: Path, fashion_store: Path
) -> None:
    """Its gate let it pass: nothing but a comparison with dense can tell."""
    nearly_nothing = {
        "structure": "weights",
        "importance": "magnitude",
        "target": {"sparsity": 0.995},
        "scope": "global",
    }
    broken = {"passes": [{"prune": nearly_nothing}], "gate": {"min_quality": 0.0, "max_batch_deviation": 1.0}}
    guards = {"min_agreement": 0.9, "min_samples": 30, "window": "1m"}
    canary = {"tier": "broken", "steps": [{"setWeight": 50}, {"pause": "1h"}], "guards": guards}
    file = write_fashion(
        tmp_path,
        stored=fashion_store,
        profiles={"broken": broken},
        models={"fashion": {**FASHION, "tiers": ["dense", "broken"]}},
        deployments={"fashion": {"canary": canary, "shadow": {"tier": "dense", "sample_ratio": 0.5}}},
    )
    server = serve(file).wait_open().wait_ready("fashion")
    with Callers(server) as callers:
        wait_until(lambda: is_in(server, "aborted"), what="the canary is taken back")
    assert set(callers.tiers) == {"dense", "broken"}
    assert "agreement" in audit(server)[-1]["text"]
    compared = {"model": "fashion", "tier": "broken", "shadow": "dense", "outcome": "compared"}
    assert server.metric("serveprune_shadowed_requests_total", **compared) >= 30


def test_canary_is_promoted_by_its_live_agreement_with_a_third_tier(
    serve: Serve, tmp_path: Path, demo: DemoRun
) -> None:
    """Both sides are compared, each with its share of the samples, however regular the canary's turns are."""
    tiers = ["dense", "int8", "lean-int8"]
    copy_store(demo.store, tmp_path / "store", artifacts={("fashion", tier) for tier in tiers})
    profiles = yaml.safe_load((demo.folder / "serveprune.yaml").read_text())["profiles"]
    guards = {"min_agreement": 0.5, "min_samples": 30, "window": "1m"}
    canary = {"tier": "lean-int8", "steps": [{"setWeight": 20}, {"pause": "1s"}], "guards": guards}
    shadow = {"tier": "dense", "sample_ratio": 0.2}
    file = write_fashion(
        tmp_path,
        profiles={name: profiles[name] for name in tiers[1:]},
        models={"fashion": {**FASHION, "tiers": tiers}},
        deployments={"fashion": {"stable": "int8", "canary": canary, "shadow": shadow}},
    )
    server = serve(file).wait_open().wait_ready("fashion")
    with Callers(server) as callers:
        wait_until(lambda: is_in(server, "promoted"), what="the canary is promoted")
    assert set(callers.tiers) == {"int8", "lean-int8"}


def test_shadow_of_an_overloaded_server_costs_no_request(serve: Serve, tmp_path: Path, fashion_store: Path) -> None:
    """Every request is a sample, which the server could not do; it drops samples, and answers every request."""
    shadow = {"tier": "int8", "sample_ratio": 1.0}
    file = write_fashion(
        tmp_path, stored=fashion_store, deployments={"fashion": {"default_tier": "dense", "shadow": shadow}}
    )
    server = serve(file).wait_open().wait_ready("fashion")
    labels = {"model": "fashion", "tier": "dense", "shadow": "int8"}

    def became(outcome: str) -> float:
        return server.metric("serveprune_shadowed_requests_total", **labels, outcome=outcome)

    with Callers(server, clients=24) as callers:
        wait_until(lambda: became("dropped") > 200, what="samples are dropped")
    assert set(callers.tiers) == {"dense"}
    sent = callers.tiers["dense"]
    wait_until(lambda: became("compared") + became("dropped") == sent, what="every sample has an end")
    assert became("failed") == 0
    assert server.metric("serveprune_requests_total", model="fashion", tier="int8") == 0


def weight(server: ServerProcess) -> float:
    return server.metric("serveprune_rollout_canary_weight_ratio", model="fashion")


def is_in(server: ServerProcess, phase: str) -> bool:
    return server.metric("serveprune_rollout_phase", model="fashion", phase=phase) == 1


def audit(server: ServerProcess) -> list[dict[str, Any]]:
    lines = (server.folder / "store/audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("processes", [1, 2])
def test_good_canary_is_promoted_step_by_step(rolling: Any, processes: int) -> None:
    server = rolling(processes=processes)
    with Callers(server) as callers:
        wait_until(lambda: is_in(server, "promoted"), what="the canary is promoted")
        before = Counter(callers.tiers)
        wait_until(lambda: callers.tiers["int8"] > before["int8"] + 50, what="it answers")

    assert set(callers.tiers) == {"dense", "int8"}
    assert callers.tiers["dense"] - before["dense"] <= 4  # under way in that moment
    assert [line["canary_percent"] for line in audit(server) if line["kind"] == "step"] == [20, 20, 50, 50]
    assert weight(server) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_canary_that_is_too_slow_is_taken_back_and_stays_so_over_a_restart(rolling: Any, processes: int) -> None:
    server = rolling(processes=processes, guards={**GUARDS, "max_p99_ms": 0.2})
    with Callers(server) as callers:
        wait_until(lambda: is_in(server, "aborted"), what="the canary is taken back")
        assert weight(server) == 0
        before = Counter(callers.tiers)
        wait_until(lambda: callers.tiers["dense"] > before["dense"] + 50, what="the stable side answers")

    assert set(callers.tiers) == {"dense", "int8"}
    assert callers.tiers["int8"] - before["int8"] <= 4
    last = audit(server)[-1]
    assert last["kind"] == "aborted"
    assert "share of answers slower than 0.2 ms" in last["text"]
    assert server.tiers("fashion")["int8"]["state"] == "ready"  # left for inspection

    server.stop(signal.SIGKILL)
    again = rolling(processes=processes, guards={**GUARDS, "max_p99_ms": 0.2})
    wait_until(lambda: is_in(again, "aborted"), what="the rollout is read")
    with Callers(again) as callers:
        wait_until(lambda: callers.tiers["dense"] > 50, what="the stable side answers")
    assert set(callers.tiers) == {"dense"}


def test_killed_server_goes_on_at_its_step(rolling: Any) -> None:
    steps = [{"setWeight": 30}, {"pause": "1s"}, {"setWeight": 60}, {"pause": {}}]
    server = rolling(steps=steps)
    with Callers(server):
        wait_until(lambda: is_in(server, "paused"), what="the rollout waits for an operator")
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()

    again = rolling(steps=steps)
    wait_until(lambda: weight(again) == 0.6, what="the canary has its weight again")
    assert is_in(again, "paused")


def test_changed_canary_of_a_running_server_begins_a_rollout(rolling: Any) -> None:
    server = rolling(guards={**GUARDS, "max_p99_ms": 0.2})
    with Callers(server) as callers:
        wait_until(lambda: is_in(server, "aborted"), what="the canary is taken back")
        file = server.folder / "serveprune.yaml"
        content = yaml.safe_load(file.read_text())
        content["deployments"]["fashion"]["canary"]["guards"] = GUARDS
        file.write_text(yaml.safe_dump(content))
        wait_until(lambda: is_in(server, "promoted"), what="the canary is promoted with other guards")
    assert set(callers.tiers) == {"dense", "int8"}
