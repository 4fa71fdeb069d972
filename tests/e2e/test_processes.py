"""A server of several processes: what its users and its operator see of it."""

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest
from contract.grpc.messages import of_arrays

from e2e.conftest import Serve
from e2e.process_pair import ADD_INPUTS, ADD_REQUEST, CONNECTIONS, ask_add, serving_processes, write_models
from e2e.server_process import COMMAND, ServerProcess, marked_processes
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub


def connections_by_process(server: ServerProcess, front: str) -> dict[int, int]:
    port = int(server.endpoints[front].rpartition(":")[2])
    return {
        child.pid: sum(
            one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in child.net_connections()
        )
        for child in serving_processes(server)
    }


@pytest.fixture
def channels(pair: ServerProcess) -> Iterator[list[grpc.Channel]]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    opened = [grpc.insecure_channel(pair.endpoints["grpc"], options=options) for _ in range(CONNECTIONS)]
    yield opened
    for channel in opened:
        channel.close()


def test_http_connections_are_spread_over_both_processes(pair: ServerProcess) -> None:
    with ExitStack() as opened:
        clients = [opened.enter_context(httpx.Client(base_url=pair.url, trust_env=False)) for _ in range(CONNECTIONS)]
        answers = [client.post("/v2/models/add/infer", json=ADD_REQUEST) for client in clients]
        by_process = connections_by_process(pair, "http")

    assert [answer.json()["outputs"][0]["data"] for answer in answers] == [[0, 2, 4]] * CONNECTIONS
    assert sum(by_process.values()) == CONNECTIONS
    assert len(by_process) == 2
    assert all(by_process.values()), by_process


def test_grpc_channels_are_spread_over_both_processes(pair: ServerProcess, channels: list[grpc.Channel]) -> None:
    for channel in channels:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(of_arrays("add", **ADD_INPUTS))
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [0, 2, 4]

    by_process = connections_by_process(pair, "grpc")
    assert sum(by_process.values()) == CONNECTIONS
    assert all(by_process.values()), by_process


def test_metrics_add_up_to_what_was_sent(pair: ServerProcess, channels: list[grpc.Channel]) -> None:
    variant = {"model": "add", "version": "1", "tier": "dense"}
    watched = {
        "serveprune_requests_total": {**variant, "code": "OK"},
        "serveprune_requested_tier_total": variant,
        "serveprune_request_duration_seconds_count": variant,
        "serveprune_request_compute_seconds_count": variant,
        "serveprune_batch_rows_sum": variant,
    }
    before = {name: pair.metric(name, **labels) for name, labels in watched.items()}
    slowest = {"le": "+Inf", **variant}
    before_in_buckets = pair.metric("serveprune_request_duration_seconds_bucket", **slowest)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask_add(pair), range(60)))
    for channel in channels:
        GRPCInferenceServiceStub(channel).ModelInfer(of_arrays("add", **ADD_INPUTS))

    assert [answer.status_code for answer in answers] == [200] * 60
    sent = 60 + len(channels)
    after = {name: pair.metric(name, **labels) for name, labels in watched.items()}
    assert {name: after[name] - before[name] for name in watched} == dict.fromkeys(watched, sent)
    in_buckets = pair.metric("serveprune_request_duration_seconds_bucket", **slowest)
    assert in_buckets - before_in_buckets == sent


def test_metrics_are_those_of_one_server(pair: ServerProcess) -> None:
    assert pair.metric("serveprune_processes") == 2
    assert pair.metric("serveprune_process_restarts_total") == 0
    assert pair.metric("serveprune_requests_in_flight") == 0
    assert pair.metric("serveprune_store_bytes") > 0
    labels = {key for line in pair.metrics_text().splitlines() for key in ("pid=",) if key in line}
    assert labels == set()
    family = [psutil.Process(pair.pid), *serving_processes(pair)]
    shared_once = sum(process.memory_full_info().pss for process in family)
    assert pair.metric("process_resident_memory_bytes") == pytest.approx(shared_once, rel=0.2)
    assert pair.metric("process_cpu_seconds_total") > max(process.cpu_times().user for process in family)


def test_each_artifact_is_built_once_for_both_processes(pair: ServerProcess) -> None:
    for model in ("add", "slow"):
        assert pair.metric("serveprune_builds_total", model=model) == 1
        assert pair.metric("serveprune_build_duration_seconds_count", model=model) == 1
        for process in ("0", "1"):
            assert f"[process {process}] serveprune.serving.bring_up: {model} dense: building" in pair.log


@pytest.mark.parametrize("sharing", [False, True], ids=["exclusive", "sharing"])
@pytest.mark.parametrize("front", ["http", "grpc", "metrics"])
def test_port_in_use_is_one_clear_message_and_nothing_is_left_running(
    tmp_path: Path, front: str, sharing: bool
) -> None:
    with socket.socket() as occupant:
        if sharing:
            occupant.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        taken = f"127.0.0.1:{occupant.getsockname()[1]}"
        addresses = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0") | {front: taken}
        finished = _serve_in_vain(write_models(tmp_path, server=addresses))

    _check_refused(finished, front=front, taken=taken)
    assert not marked_processes(tmp_path)


@pytest.mark.parametrize("front", ["http", "grpc"])
@pytest.mark.parametrize("processes", [1, 2])
def test_second_server_on_the_same_port_is_refused(
    pair: ServerProcess, tmp_path: Path, front: str, processes: int
) -> None:
    taken = pair.endpoints[front]
    addresses = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0") | {front: taken}

    finished = _serve_in_vain(write_models(tmp_path, server={"processes": processes, **addresses}))

    _check_refused(finished, front=front, taken=taken)
    assert ask_add(pair).status_code == 200


def test_check_passes_when_every_process_answers(serve: Serve, pair: ServerProcess, tmp_path: Path) -> None:
    config = write_models(tmp_path, store=pair.folder / "store")
    # No inputs can be made up that end the slow model's loop in time.
    text = config.read_text(encoding="utf-8")
    config.write_text(text.partition("  slow:")[0], encoding="utf-8")
    server = serve(config, options=("--check",))

    assert server.process.wait(120) == 0, server.log
    assert "check passed" in server.log


def _serve_in_vain(config: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, "serve", str(config)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "SERVEPRUNE_TEST_FOLDER": str(config.parent)},
    )


def _check_refused(finished: "subprocess.CompletedProcess[str]", *, front: str, taken: str) -> None:
    assert finished.returncode == 2, finished.stderr
    (message,) = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert f"server.{front}: cannot listen on {taken}" in message
    assert "Traceback" not in finished.stderr
