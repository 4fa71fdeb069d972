"""How a server ends: asked politely, asked twice, killed, and when it cannot begin."""

import fcntl
import os
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from e2e.conftest import Serve
from e2e.deployment import write_fashion, write_slow
from e2e.server_process import COMMAND, ServerProcess, is_alive, marked_environment, marked_processes, wait_until
from e2e.slow_requests import EXECUTORS, ask_grpc, ask_http, in_flight, wait_in_flight

IN_FLIGHT = 20
STEPS_OF_SECONDS = 1_500_000
STEPS_WITHOUT_END = 200_000_000


@pytest.fixture
def slow_server(serve: Serve, server: ServerProcess, tmp_path: Path) -> ServerProcess:
    """A server of its own with the slow model, which the other server has imported already."""
    config = write_slow(tmp_path, stored=server.folder / "store", drain_seconds=60, executors=EXECUTORS)
    return serve(config).wait_open().wait_ready("slow")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_every_request_in_flight_is_answered_when_a_signal_comes(
    slow_server: ServerProcess, number: signal.Signals
) -> None:
    with in_flight(slow_server, IN_FLIGHT, steps_of_the_first=STEPS_OF_SECONDS) as asked:
        exit_code = slow_server.stop(number)

        asked.check_answered()
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
