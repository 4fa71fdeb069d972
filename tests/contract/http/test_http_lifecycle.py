import http.client
import socket
import threading
import time

import httpx
import psutil
import pytest

from contract.http.served import is_closed, post, read_answer, serve
from contract.numpy_plane import NumpyPlane
from serveprune.config.server import Address, ServerConfig
from serveprune.errors import FailedPrecondition
from serveprune.frontends.http.server import HttpFrontend

SLOW = post("/v2/models/slow/infer", b'{"inputs":[]}')


def test_start_returns_the_address_it_really_listens_on() -> None:
    with serve() as served:
        assert served.address.host == "127.0.0.1"
        assert served.address.port > 0
        assert httpx.get(f"http://{served.address}/v2/health/live", trust_env=False).status_code == 200


def test_start_fails_when_the_address_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        plane = NumpyPlane()
        address = Address(*occupant.getsockname())
        frontend = HttpFrontend(plane, plane, config=ServerConfig(http=address), on_rejected=lambda code: None)

        with pytest.raises(FailedPrecondition, match=rf"cannot listen on 127\.0\.0\.1:{address.port}: .*in use"):
            frontend.start()
        plane.close()


def test_stop_frees_the_port_and_may_be_repeated() -> None:
    with serve() as served:
        served.client.get("/v2")
        served.frontend.stop(drain_seconds=5)
        served.frontend.stop(drain_seconds=5)

        with pytest.raises(ConnectionRefusedError):
            served.connect()
        with socket.create_server(served.address):
            pass


def test_stop_finishes_what_is_in_flight_and_takes_nothing_new() -> None:
    with serve() as served:
        busy, idle = served.connect(), served.connect()
        busy.sendall(SLOW)
        assert served.plane.entered.wait(20)
        stopping = threading.Thread(target=lambda: served.frontend.stop(drain_seconds=20))
        stopping.start()

        assert is_closed(idle)
        with pytest.raises(ConnectionRefusedError):
            served.connect()
        assert stopping.is_alive()
        served.plane.release.set()
        answer = read_answer(busy)
        stopping.join(20)

        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert is_closed(busy)
        assert not stopping.is_alive()
        busy.close()
        idle.close()


def test_stop_answers_503_to_what_outlasts_the_drain() -> None:
    with serve() as served, served.connect() as connection:
        connection.sendall(SLOW)
        assert served.plane.entered.wait(20)
        served.frontend.stop(drain_seconds=0.2)

        answer = read_answer(connection)
        assert answer.status == 503
        assert "shutting down" in answer.error
        assert is_closed(connection)


def ask_for_16_megabytes() -> bytes:
    elements = 2**22
    text = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"parameters":{"binary_data_size":%d}}],'
        b'"parameters":{"binary_data_output":true}}' % (elements, 4 * elements)
    )
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return post("/v2/models/identity_fp32/infer", text + bytes(4 * elements), headers=headers)


def test_client_that_stops_reading_is_cut_off() -> None:
    with serve(body_timeout_seconds=0.5) as served, served.connect() as connection:
        connection.sendall(ask_for_16_megabytes())
        while not served.plane.answers:
            time.sleep(0.01)
        client = connection.getsockname()
        while any(peer.raddr == client and peer.status == "ESTABLISHED" for peer in psutil.Process().net_connections()):
            time.sleep(0.05)

        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            read_answer(connection)


def test_client_that_reads_slowly_is_waited_for() -> None:
    with serve(body_timeout_seconds=1.0) as served, served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        connection.sendall(ask_for_16_megabytes())
        received = 0
        for _ in range(16):
            time.sleep(0.1)
            received += len(connection.recv(2**20))

        while received < 2**24:
            chunk = connection.recv(2**20)
            assert chunk
            received += len(chunk)


def test_stop_does_not_wait_for_a_client_that_reads_nothing() -> None:
    with serve() as served, served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(ask_for_16_megabytes())
        while not served.plane.answers:
            time.sleep(0.01)

        served.frontend.stop(drain_seconds=0.2)

        with pytest.raises(ConnectionRefusedError):
            served.connect()
