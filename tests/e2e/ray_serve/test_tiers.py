"""Tiers on Ray Serve: what they answer, how they scale, and what a killed replica costs."""

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from contract.grpc.messages import of_arrays, outputs

from e2e.graphs import CARRIER_WIDTH, slow_inputs
from e2e.ray_serve.hosted import HostedOnRay
from e2e.server_process import ServerProcess, wait_until

GUARDS = {"max_error_ratio": 0.5, "min_samples": 5, "window": "1m"}
CANARY = {"tier": "int8", "steps": [{"setWeight": 50}, {"pause": "1s"}], "guards": GUARDS}
STEPS = 10_000


def carried(number: int, **parameters: Any) -> dict[str, Any]:
    inputs = [
        {"name": "id", "datatype": "INT64", "shape": [1, 1], "data": [number]},
        {"name": "x", "datatype": "FP32", "shape": [1, CARRIER_WIDTH], "data": [number / 100] * CARRIER_WIDTH},
    ]
    return {"inputs": inputs, **({"parameters": parameters} if parameters else {})}


def ask(server: HostedOnRay | ServerProcess, body: Any, *, model: str = "carrier", **headers: str) -> dict[str, Any]:
    answer = server.http.post(f"/v2/models/{model}/infer", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def check_same(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare two answers, of which a float may differ in its last digits: they come from other processes."""
    for one, other in zip(given.pop("outputs"), expected.pop("outputs"), strict=True):
        np.testing.assert_allclose(one.pop("data"), other.pop("data"), rtol=1e-4, atol=1e-6)
        assert one == other
    assert given == expected


@pytest.mark.parametrize("tier", ["dense", "int8"])
def test_tier_answers_over_http_as_our_own_server_does(hosted: HostedOnRay, alone: ServerProcess, tier: str) -> None:
    for body, options in (
        (carried(7), {"model": f"carrier@{tier}"}),
        (carried(8), {"x-compression-tier": tier}),
        (carried(9, tier=tier), {}),
    ):
        answer = ask(hosted, body, **options)
        assert answer["parameters"] == {"tier": tier, "tier_reason": "requested"}
        check_same(answer, ask(alone, body, **options))


@pytest.mark.parametrize("tier", ["dense", "int8"])
def test_tier_answers_over_grpc_as_our_own_server_does(hosted: HostedOnRay, alone: ServerProcess, tier: str) -> None:
    row = np.full((3, CARRIER_WIDTH), 0.25, dtype=np.float32)
    request = of_arrays("carrier", id=np.array([[1], [2], [3]], dtype=np.int64), x=row)
    given, expected = (
        server.stub.ModelInfer(request, metadata=[("x-compression-tier", tier)]) for server in (hosted, alone)
    )
    for one, other in zip(outputs(given), outputs(expected), strict=True):
        assert (one.name, one.datatype, one.shape) == (other.name, other.datatype, other.shape)
        np.testing.assert_allclose(one.array, other.array, rtol=1e-4, atol=1e-6)
    assert given.parameters["tier"].string_param == tier


def test_descriptions_are_those_of_our_own_server(hosted: HostedOnRay, alone: ServerProcess) -> None:
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/models/carrier",
        "/v2/models/carrier@int8",
        "/v2/models/carrier/ready",
    ):
        assert hosted.http.get(path).json() == alone.http.get(path).json(), path
    indexes = [server.http.post("/v2/repository/index").json() for server in (hosted, alone)]
    given, expected = ([entry for entry in index if "homeless" not in entry["name"]] for index in indexes)
    assert given == expected


def test_objective_is_met_by_a_tier_that_is_predicted_to_answer_in_time(hosted: HostedOnRay) -> None:
    answer = ask(hosted, carried(3, max_latency_ms=20_000))
    assert answer["parameters"]["tier_reason"].startswith("objective: dense is predicted to answer in")
    refused = hosted.http.post("/v2/models/carrier/infer", json=carried(3, max_latency_ms=0.0001))
    assert refused.status_code in (400, 429, 504), refused.text


def test_tier_without_room_keeps_no_other_waiting(hosted: HostedOnRay) -> None:
    (tier,) = hosted.tiers("homeless").values()
    assert tier["state"] == "waiting"
    assert "has the cluster room for one?" in tier["reasons"][0]
    refused = hosted.http.post("/v2/models/homeless/infer", json=_slow_request())
    assert refused.status_code == 503, refused.text


def test_requests_of_many_callers_get_their_own_answers(hosted: HostedOnRay) -> None:
    def check(number: int) -> None:
        answer = ask(hosted, carried(number, tier="int8" if number % 2 else "dense"))
        assert answer["outputs"][0]["data"] == [number]

    assert _together([partial(check, number) for number in range(100)], callers=10) == []


def test_tier_scales_up_under_load_and_a_killed_replica_loses_nothing(hosted: HostedOnRay) -> None:
    (first,) = hosted.replicas("slow")
    expected = _slow_answer(hosted)
    with _Load(hosted, expected) as load:
        wait_until(lambda: len(hosted.replicas("slow")) == 2, what="a second replica of the slow tier is there")
        wait_until(lambda: load.answered >= 10, what="requests are answered")
        os.kill(first, signal.SIGKILL)
        answered = load.answered
        wait_until(lambda: load.answered >= answered + 20, what="requests are answered after the kill")
        wait_until(lambda: len(set(hosted.replicas("slow")) - {first}) == 2, what="the replica was started anew")
    assert load.failures == []


def test_what_is_replaced_answers_what_it_has_taken(hosted: HostedOnRay) -> None:
    expected = _slow_answer(hosted)
    former = {name: hosted.replicas(name) for name in ("ingress", "slow")}
    with _Load(hosted, expected) as load:
        wait_until(lambda: load.answered >= 5, what="requests are answered")
        hosted.deploy(
            ingress={"ray_actor_options": {"num_cpus": 0.4}}, **{"slow@dense": {"ray_actor_options": {"num_cpus": 0.9}}}
        )
        for name, replicas in former.items():

            def are_replaced(name: str = name, replicas: Sequence[int] = replicas) -> bool:
                return bool(hosted.replicas(name)) and not set(replicas) & set(hosted.replicas(name))

            wait_until(are_replaced, what=f"{name} has been replaced")
        answered = load.answered
        wait_until(lambda: load.answered >= answered + 5, what="requests are answered by what took its place")
    assert load.failures == []


def test_sections_by_user_config_are_applied_whole_or_refused(hosted: HostedOnRay) -> None:
    # The last of the file, for it changes what is served.
    assert ask(hosted, carried(1))["parameters"]["tier"] == "dense"
    processes = [hosted.replicas(name) for name in ("ingress", "carrier@dense", "carrier@int8")]

    hosted.deploy({"deployments": {"carrier": {"default_tier": "int8"}}})
    wait_until(lambda: ask(hosted, carried(1))["parameters"]["tier"] == "int8", what="the default tier is another")
    assert hosted.metric("serveprune_config_last_reload_successful") == 1

    hosted.deploy({"deployments": {"carrier": {"default_tier": "nothing"}}})
    wait_until(lambda: hosted.metric("serveprune_config_last_reload_successful") == 0, what="it is refused")
    assert ask(hosted, carried(1))["parameters"]["tier"] == "int8"
    assert [hosted.replicas(name) for name in ("ingress", "carrier@dense", "carrier@int8")] == processes


def test_ingress_that_is_started_anew_has_what_was_applied_last(hosted: HostedOnRay) -> None:
    # After the former, whose last user_config was refused.
    (ingress,) = hosted.replicas("ingress")
    os.kill(ingress, signal.SIGKILL)

    def has_recovered() -> bool:
        answer = hosted.http.post("/v2/models/carrier/infer", json=carried(1))
        return answer.status_code == 200 and answer.json()["parameters"]["tier"] == "int8"

    wait_until(has_recovered, what="another ingress serves what was applied last")
    assert ingress not in hosted.replicas("ingress")
    wait_until(lambda: hosted.metric("serveprune_config_last_reload_successful") == 0, what="it says so")


def test_canary_by_user_config_is_rolled_out(hosted: HostedOnRay) -> None:
    hosted.deploy({"deployments": {"carrier": {"stable": "dense", "canary": CANARY}}})
    seen: list[tuple[str, str]] = []

    def is_promoted() -> bool:
        parameters = ask(hosted, carried(1))["parameters"]
        seen.append((parameters["tier"], parameters["tier_reason"]))
        return hosted.metric("serveprune_rollout_canary_weight_ratio", model="carrier") == 1

    wait_until(is_promoted, what="the canary is promoted")
    assert {tier for tier, _ in seen} == {"dense", "int8"}
    assert {ask(hosted, carried(1))["parameters"]["tier"] for _ in range(5)} == {"int8"}


class _Load:
    """Callers of the slow model, who go on until the end and note what failed."""

    def __init__(self, hosted: HostedOnRay, expected: Mapping[str, Any], *, callers: int = 6) -> None:
        self._hosted, self._expected = hosted, expected
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> "_Load":
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
                assert _slow_answer(self._hosted) == self._expected
                self.answered += 1
            except Exception as error:
                self.failures.append(repr(error))


def _slow_request() -> dict[str, Any]:
    inputs = slow_inputs(STEPS)
    return {
        "inputs": [
            {"name": "steps", "datatype": "INT64", "shape": [1], "data": inputs["steps"].tolist()},
            {"name": "x", "datatype": "FP32", "shape": list(inputs["x"].shape), "data": inputs["x"].ravel().tolist()},
        ]
    }


def _slow_answer(hosted: HostedOnRay) -> dict[str, Any]:
    return ask(hosted, _slow_request(), model="slow")


def _together(calls: list[Callable[[], None]], *, callers: int) -> list[str]:
    """Make calls in so many threads, and return what failed."""
    failures: list[str] = []
    left = iter(calls)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                call = next(left, None)
            if call is None:
                return
            try:
                call()
            except Exception as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
