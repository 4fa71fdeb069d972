"""Processes of one server that come, are killed, are told to stop, and die again and again."""

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from contract.grpc.messages import of_arrays

from e2e.conftest import Serve
from e2e.deployment import write_config
from e2e.graphs import SLOW_WIDTH, slow_inputs, write_large_model
from e2e.process_pair import CONNECTIONS, ask_add, ask_slow, serving_processes, wait_both
from e2e.server_process import ServerProcess, is_alive, marked_processes, wait_until

STEPS_OF_A_MOMENT = 2_000
STEPS_WITHOUT_END = 200_000_000


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
                over_http.append(threads.submit(ask_slow, own_pair, 100 * STEPS_OF_A_MOMENT))
            else:
                over_grpc.append(threads.submit(call_grpc, 100 * STEPS_OF_A_MOMENT))
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
