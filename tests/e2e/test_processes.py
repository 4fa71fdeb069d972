"""A server of several processes: what its users and its operator see of it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import grpc
import httpx
import numpy as np
import psutil
import pytest
from contract.grpc.messages import of_arrays

from e2e.conftest import Serve
from e2e.deployment import write_config
from e2e.graphs import SLOW_WIDTH, slow_inputs, write_contract_models, write_large_model, write_slow_model
from e2e.server_process import COMMAND, ServerProcess, is_alive, marked_processes, wait_until
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub

CONNECTIONS = 24
"""With two processes, one of them gets none of so many once in eight million times."""

STEPS_OF_A_MOMENT = 2_000
STEPS_WITHOUT_END = 200_000_000

ADD_INPUTS = {name: np.arange(3, dtype=np.float32).reshape(1, 3) for name in ("a", "b")}
ADD_REQUEST = {
    "inputs": [{"name": name, "datatype": "FP32", "shape": [1, 3], "data": [0, 1, 2]} for name in ("a", "b")]
}


def write_models(
    folder: Path, *, store: Path | None = None, server: Mapping[str, object] = MappingProxyType({})
) -> Path:
    write_contract_models(folder)
    write_slow_model(folder / "slow.onnx")
    return write_config(
        folder,
        store={"path": str(store or folder / "store")},
        server={"processes": 2, "executors": 2, **server},
        models={name: {"source": {"onnx": f"{name}.onnx"}, "tiers": ["dense"]} for name in ("add", "slow")},
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two processes that imported both models themselves, for the tests that leave them as they found them."""
    with ServerProcess(write_models(tmp_path_factory.mktemp("pair"))) as running:
        yield wait_both(running.wait_open())


@pytest.fixture
def own_pair(serve: Serve, pair: ServerProcess, tmp_path: Path) -> ServerProcess:
    """Two processes of the test's own, from the same store."""
    config = write_models(tmp_path, store=pair.folder / "store", server={"drain_seconds": 60})
    return wait_both(serve(config).wait_open())


def wait_both(server: ServerProcess) -> ServerProcess:
    def all_ready() -> bool:
        assert server.process.poll() is None, server.log
        ready = [server.metric("serveprune_tier_ready", model=model) == 1 for model in ("add", "slow")]
        return all(ready) and server.metric("serveprune_processes") == 2

    wait_until(all_ready, what="both processes serve both models")
    return server


def serving_processes(server: ServerProcess) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(server.pid).children()
        if is_alive(child.pid) and "serveprune.cli.serving_process" in child.cmdline()
    ]


def connections_by_process(server: ServerProcess, front: str) -> dict[int, int]:
    port = int(server.endpoints[front].rpartition(":")[2])
    return {
        child.pid: sum(
            one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in child.net_connections()
        )
        for child in serving_processes(server)
    }


def ask_add(server: ServerProcess) -> httpx.Response:
    """Send one request over a connection of its own."""
    return httpx.post(f"{server.url}/v2/models/add/infer", json=ADD_REQUEST, trust_env=False, timeout=60)


def ask_slow(server: ServerProcess, steps: int) -> httpx.Response:
    inputs = [
        {"name": "steps", "datatype": "INT64", "shape": [1], "data": [steps]},
        {"name": "x", "datatype": "FP32", "shape": [1, SLOW_WIDTH], "data": [1.0] * SLOW_WIDTH},
    ]
    url = f"{server.url}/v2/models/slow/infer"
    return httpx.post(url, json={"inputs": inputs}, trust_env=False, timeout=120)


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
            assert f"[process {process}] serveprune.serving.controlplane: {model} dense: building" in pair.log


def test_killed_process_is_replaced_and_nothing_is_counted_back(own_pair: ServerProcess) -> None:
    victim = serving_processes(own_pair)[0]
    counted: list[float] = []
    answers: list[int] = []
    lost = 0
    killed_at: int | None = None

    def count() -> float:
        return own_pair.metric("serveprune_requests_total", model="add", code="OK")

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            answers.append(ask_add(own_pair).status_code)
        except httpx.TransportError:
            lost += 1  # it was at the process that was killed
        if len(answers) % 10 == 0:
            counted.append(count())
        if len(answers) == 40:
            victim.kill()
            killed_at = len(answers)
        if (
            killed_at is not None
            and own_pair.metric("serveprune_process_restarts_total") == 1
            # Its successor gets connections, too.
            and own_pair.metric("serveprune_processes") == 2
        ):
            break
    wait_both(own_pair)
    after = [ask_add(own_pair).status_code for _ in range(40)]

    assert set(answers) == {200}
    assert after == [200] * 40
    assert lost <= 2
    assert counted == sorted(counted)
    # Also what the victim had answered before it died, and since it was last asked.
    assert count() == len(answers) + len(after)
    assert victim.pid not in [process.pid for process in serving_processes(own_pair)]
    assert len(serving_processes(own_pair)) == 2
    assert f"pid {victim.pid}) was killed by SIGKILL" in own_pair.log


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)],
    ids=["SIGTERM", "SIGINT", "SIGTERM to all, as systemd does"],
)
def test_every_request_in_flight_is_answered_when_a_signal_comes(
    own_pair: ServerProcess, number: signal.Signals, whole_group: bool
) -> None:
    count = 16
    with ThreadPoolExecutor(count) as threads:
        over_http: list[Future[httpx.Response]] = []
        over_grpc: list[Future[bytes]] = []

        def call_grpc(steps: int) -> bytes:
            return bytes(own_pair.stub.ModelInfer(of_arrays("slow", **slow_inputs(steps))).raw_output_contents[0])

        for index in range(count):
            if index % 2:
                over_http.append(threads.submit(ask_slow, own_pair, 40 * STEPS_OF_A_MOMENT))
            else:
                over_grpc.append(threads.submit(call_grpc, 40 * STEPS_OF_A_MOMENT))
        wait_until(
            lambda: own_pair.metric("serveprune_requests_in_flight") >= count - 4, what="most requests are in flight"
        )
        family = marked_processes(own_pair.folder)
        for process in serving_processes(own_pair) if whole_group else ():
            process.send_signal(number)

        exit_code = own_pair.stop(number)

        assert [answer.result().status_code for answer in over_http] == [200] * (count // 2)
        assert all(len(answer.result()) == 4 * SLOW_WIDTH for answer in over_grpc)
    assert exit_code == 0
    assert len(family) == 3
    assert not [pid for pid in family if is_alive(pid)]
    assert "Traceback" not in own_pair.log
    assert not (own_pair.folder / "endpoints.json").exists()


def test_ready_holds_for_every_connection_while_processes_still_load(serve: Serve, tmp_path: Path) -> None:
    write_large_model(tmp_path / "large.onnx")
    config = write_config(
        tmp_path,
        store={"path": str(tmp_path / "store")},
        server={"processes": 2, "executors": 2},
        models={"large": {"source": {"onnx": "large.onnx"}, "tiers": ["dense"]}},
    )
    server = serve(config).wait_open()
    said: list[int] = []

    def both_listen() -> bool:
        url = f"{server.url}/v2/health/ready"
        said.extend(httpx.get(url, trust_env=False, timeout=60).status_code for _ in range(4))
        return server.metric("serveprune_processes") == 2

    wait_until(both_listen, what="both processes listen")
    said += [httpx.get(f"{server.url}/v2/models/large/ready", trust_env=False).status_code for _ in range(CONNECTIONS)]

    assert said == sorted(said, reverse=True)
    assert set(said) <= {503, 200}
    assert said[-1] == 200


def test_second_signal_ends_all_processes_at_once(own_pair: ServerProcess) -> None:
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(ask_slow, own_pair, STEPS_WITHOUT_END)
        wait_until(lambda: own_pair.metric("serveprune_requests_in_flight") == 1, what="a request is in flight")
        own_pair.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in own_pair.log, what="the drain has begun")

        assert own_pair.stop(seconds=30) == 128 + signal.SIGTERM
        assert isinstance(answer.exception(), httpx.HTTPError)
    wait_until(lambda: not marked_processes(own_pair.folder), what="no process is left", seconds=10)


def test_killed_supervisor_leaves_no_process_behind_and_starts_again(own_pair: ServerProcess, serve: Serve) -> None:
    family = marked_processes(own_pair.folder)
    assert len(family) == 3

    assert own_pair.stop(signal.SIGKILL) == -signal.SIGKILL

    wait_until(lambda: not marked_processes(own_pair.folder), what="no process is left", seconds=10)
    again = wait_both(serve(own_pair.folder / "serveprune.yaml").wait_open())
    assert ask_add(again).status_code == 200


def test_server_ends_when_a_process_dies_again_and_again(own_pair: ServerProcess) -> None:
    def kill_the_newest() -> bool:
        for process in serving_processes(own_pair):
            if process.pid not in spared:
                process.kill()
        return own_pair.process.poll() is not None

    spared = {serving_processes(own_pair)[0].pid}
    wait_until(kill_the_newest, what="the server has given up")

    assert own_pair.process.wait() == 1
    (message,) = [line for line in own_pair.log.splitlines() if line.startswith("error:")]
    assert "was killed by SIGKILL, the last of 6 times in a row soon after its start" in message
    assert not marked_processes(own_pair.folder)


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
