"""How a server ends: asked politely, asked twice, killed, and when it cannot begin."""

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from contract.grpc.messages import of_arrays

from e2e.conftest import Serve
from e2e.deployment import write_fashion, write_slow
from e2e.graphs import SLOW_WIDTH, slow_inputs
from e2e.server_process import COMMAND, ServerProcess, is_alive, marked_environment, marked_processes, wait_until

IN_FLIGHT = 20
STEPS_OF_A_MOMENT = 2_000
STEPS_WITHOUT_END = 200_000_000


def ask_http(server: ServerProcess, steps: int) -> httpx.Response:
    inputs = [
        {"name": name, "datatype": {"i": "INT64", "f": "FP32"}[array.dtype.kind], "shape": array.shape, "data": data}
        for name, array in slow_inputs(steps).items()
        for data in [array.ravel().tolist()]
    ]
    return server.http.post("/v2/models/slow/infer", content=json.dumps({"inputs": inputs}))


def ask_grpc(server: ServerProcess, steps: int) -> bytes:
    answer = server.stub.ModelInfer(of_arrays("slow", **slow_inputs(steps)))
    return bytes(answer.raw_output_contents[0])


@pytest.fixture
def slow_server(serve: Serve, server: ServerProcess, tmp_path: Path) -> ServerProcess:
    """A server of its own with the slow model, which the other server has imported already."""
    config = write_slow(tmp_path, stored=server.folder / "store", drain_seconds=60, executors=2)
    return serve(config).wait_open().wait_ready("slow")


def wait_in_flight(server: ServerProcess, count: int) -> None:
    wait_until(lambda: server.metric("serveprune_requests_in_flight") == count, what=f"{count} requests are in flight")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_every_request_in_flight_is_answered_when_a_signal_comes(
    slow_server: ServerProcess, number: signal.Signals
) -> None:
    # The first two hold both executors for seconds, so that all others are in flight too when the signal comes.
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        over_http: list[Future[httpx.Response]] = []
        over_grpc: list[Future[bytes]] = []
        for index in range(IN_FLIGHT):
            steps = 750 * STEPS_OF_A_MOMENT if index < 2 else STEPS_OF_A_MOMENT
            if index % 2:
                over_http.append(threads.submit(ask_http, slow_server, steps))
            else:
                over_grpc.append(threads.submit(ask_grpc, slow_server, steps))
            if index < 2:
                wait_in_flight(slow_server, index + 1)
        wait_in_flight(slow_server, IN_FLIGHT)

        exit_code = slow_server.stop(number)

        assert [answer.result().status_code for answer in over_http] == [200] * (IN_FLIGHT // 2)
        assert all(len(answer.result()) == 4 * SLOW_WIDTH for answer in over_grpc)
    assert exit_code == 0
    assert "Traceback" not in slow_server.log
    assert not (slow_server.folder / "endpoints.json").exists()


def test_stop_ends_when_its_patience_does_and_says_so_to_those_who_wait(
    serve: Serve, server: ServerProcess, tmp_path: Path
) -> None:
    config = write_slow(tmp_path, stored=server.folder / "store", drain_seconds=1)
    running = serve(config).wait_open().wait_ready("slow")
    with ThreadPoolExecutor(2) as threads:
        over_http = threads.submit(ask_http, running, STEPS_WITHOUT_END)
        over_grpc = threads.submit(ask_grpc, running, STEPS_WITHOUT_END)
        wait_in_flight(running, 2)

        exit_code = running.stop(seconds=30)

        assert over_http.result().status_code == 503
        assert set(over_http.result().json()) == {"error"}
        refusal = over_grpc.exception()
        assert isinstance(refusal, grpc.RpcError)
    assert exit_code == 0


def test_second_signal_ends_a_drain(slow_server: ServerProcess) -> None:
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(ask_http, slow_server, STEPS_WITHOUT_END)
        wait_in_flight(slow_server, 1)
        slow_server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in slow_server.log, what="the drain has begun")

        assert slow_server.stop(seconds=30) == 128 + signal.SIGTERM
        assert isinstance(answer.exception(), httpx.HTTPError)


def test_signal_during_a_build_leaves_a_sound_store_and_no_process(
    serve: Serve, dense_store: Path, tmp_path: Path
) -> None:
    config = write_fashion(tmp_path, stored=dense_store)
    server = serve(config).wait_open()
    child = server.build_child()
    wait_until(lambda: _stage(server) == "quantize", what="the build has work in progress")

    assert server.stop() == 0
    _check_nothing_left(tmp_path, child.pid)
    assert serve(config).wait_open().wait_state("fashion", "int8", "ready")["quality"]


def test_check_that_is_interrupted_does_not_pass(serve: Serve, dense_store: Path, tmp_path: Path) -> None:
    server = serve(write_fashion(tmp_path, stored=dense_store), options=("--check",)).wait_open()
    server.build_child()

    assert server.stop() == 1
    assert "check failed: stopped by a signal" in server.log


def test_killed_server_leaves_no_build_behind_and_starts_again(serve: Serve, dense_store: Path, tmp_path: Path) -> None:
    config = write_fashion(tmp_path, stored=dense_store)
    server = serve(config).wait_open()
    child = server.build_child()
    wait_until(lambda: _stage(server) == "quantize", what="the build has work in progress")

    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not is_alive(child.pid), what="the build has ended", seconds=30)
    assert not marked_processes(tmp_path)
    # Nobody was left to clean up; whoever builds next does.
    again = serve(config).wait_open()
    assert again.wait_state("fashion", "int8", "ready")["quality"]
    assert again.stop() == 0
    assert not list((tmp_path / "store" / "tmp").iterdir())


@pytest.mark.parametrize("front", ["http", "grpc", "metrics"])
def test_port_in_use_is_one_clear_message_and_nothing_is_left_running(
    dense_store: Path, tmp_path: Path, front: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        taken = f"127.0.0.1:{occupant.getsockname()[1]}"
        addresses = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0") | {front: taken}
        config = write_fashion(tmp_path, stored=dense_store, server=addresses)
        finished = subprocess.run(
            [*COMMAND, "serve", str(config)],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "SERVEPRUNE_TEST_FOLDER": str(tmp_path)},
        )

    assert finished.returncode == 2
    (message,) = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert f"server.{front}: cannot listen on {taken}" in message
    assert "Traceback" not in finished.stderr
    assert not marked_processes(tmp_path)


def _stage(server: ServerProcess) -> str:
    progress = server.tiers("fashion")["int8"]["progress"]
    return str(progress["stage"]) if progress else ""


def _check_nothing_left(folder: Path, child: int) -> None:
    assert not is_alive(child)
    wait_until(lambda: not marked_processes(folder), what="no process is left", seconds=10)
    verified = subprocess.run(
        [*COMMAND, "cache", "verify", "--store", str(folder / "store")], capture_output=True, text=True, timeout=100
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert len(list((folder / "store" / "artifacts").iterdir())) == 1
    assert not list((folder / "store" / "tmp").iterdir())


def test_server_stops_when_its_terminal_is_closed_and_not_when_it_is_hung_up_by_hand(
    server: ServerProcess, tmp_path: Path
) -> None:
    config = write_slow(tmp_path, stored=server.folder / "store")
    endpoints = tmp_path / "endpoints.json"
    addresses = [word for front in ("http", "grpc", "metrics") for word in (f"--{front}", "127.0.0.1:0")]
    command = [*COMMAND, "serve", str(config), *addresses, "--endpoints-file", str(endpoints)]
    terminal, end = os.openpty()
    process = subprocess.Popen(
        command,
        stdin=end,
        stdout=end,
        stderr=end,
        env=marked_environment(tmp_path),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(end, termios.TIOCSCTTY, 0),
    )
    os.close(end)
    left = threading.Event()
    reading = threading.Thread(target=read_out, args=(terminal, left))
    reading.start()
    try:
        wait_until(endpoints.exists, what="the server is open")
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
    finally:
        # A terminal that somebody still reads is not closed.
        left.set()
        reading.join()
        os.close(terminal)
    process.wait(60)  # its code says that it could not print to the terminal
    assert not endpoints.exists()
    assert marked_processes(tmp_path) == []


def read_out(terminal: int, left: threading.Event) -> None:
    """Read what is printed, so that whoever prints never waits."""
    while not left.is_set():
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
