"""Bounds on connections, headers, URLs and on what JSON may become; and small inferences, which go their own way."""

import random
import re
import time

import psutil
import pytest

from contract.http.served import Served, is_closed, post, read_answer, serve
from contract.http.test_http_sockets import BODY, INFER, exchange, wait_until

MEBIBYTE = 2**20


def test_connection_over_the_limit_is_told_to_retry_and_closed() -> None:
    with serve(max_connections=3) as served:
        open_ones = [served.connect() for _ in range(3)]
        for connection in open_ones:
            connection.sendall(post(INFER, BODY))
            assert read_answer(connection).status == 200

        for _ in range(5):
            with served.connect() as surplus:
                answer = read_answer(surplus)
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert "server.max_connections" in answer.error
                assert is_closed(surplus)

        for connection in open_ones:
            connection.sendall(post(INFER, BODY))
            assert read_answer(connection).status == 200
        open_ones.pop().close()
        wait_until(lambda: _is_served(served))
        for connection in open_ones:
            connection.close()


def _is_served(served: Served) -> bool:
    with served.connect() as connection:
        connection.sendall(post(INFER, BODY))
        return read_answer(connection).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Long": "x" * 5000},
        {f"X-{index}": "x" * 100 for index in range(50)},
        {f"X-{index}": "" for index in range(200)},
    ],
    ids=["one long", "all together", "many"],
)
def test_headers_over_the_limit_are_431(headers: dict[str, str]) -> None:
    with serve(max_header_bytes=4096) as served, served.connect() as connection:
        connection.sendall(post(INFER, BODY, headers=headers))
        answer = read_answer(connection)

        assert answer.status == 431
        assert "server.max_header_bytes" in answer.error
        assert is_closed(connection)
        assert served.client.post(INFER, content=BODY).status_code == 200


@pytest.mark.parametrize(
    ("beginning", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\nX-Endless: ", 431),
        (b"GET /v2 HTTP/1.1\r\nX-Endless", 431),
        (b"GET /v2/", 414),
        (f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ".encode(), None),
        (f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;".encode(), None),
    ],
    ids=["value", "name", "url", "trailer", "chunk extension"],
)
def test_what_never_ends_is_cut_off_early(beginning: bytes, status: int | None) -> None:
    with serve(max_header_bytes=4096) as served, served.connect() as connection:
        connection.sendall(beginning)
        sent = 0
        try:
            while sent < 64 * MEBIBYTE:
                sent += connection.send(b"x" * 4096)
        except OSError:
            pass

        # What fits into the buffers of both ends, and no more.
        assert sent < 32 * MEBIBYTE
        if status is not None:
            assert exchange(served, beginning + b"x" * 5000).status == status
        assert served.client.post(INFER, content=BODY).status_code == 200


def test_url_over_the_limit_is_414() -> None:
    with serve(max_header_bytes=4096) as served:
        answer = exchange(served, post("/v2/models/" + "m" * 5000 + "/infer", BODY))

        assert answer.status == 414
        assert "server.max_header_bytes" in answer.error


def test_json_that_would_become_more_than_the_budget_is_413() -> None:
    with serve(max_request_bytes=4 * MEBIBYTE, max_buffered_bytes=16 * MEBIBYTE) as served:
        bomb = b'{"inputs":[' + b"[]," * MEBIBYTE + b"[]]}"
        answer = served.client.post(INFER, content=bomb)

        assert answer.status_code == 413
        assert "server.max_buffered_bytes" in answer.json()["error"]
        assert served.rejected == ["RESOURCE_EXHAUSTED"]
        # The budget is as it was.
        digits = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,100000],"data":[%s]}]}' % b",".join(
            [b"0.123456"] * 100_000
        )
        for _ in range(5):
            assert served.client.post(INFER, content=digits).status_code == 200


def test_json_nested_beyond_reason_is_400(served: Served) -> None:
    for depth in (2000, 30_000):
        answer = exchange(served, post(INFER, b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"))
        assert answer.status == 400


def test_small_body_that_comes_in_pieces_is_answered(served: Served) -> None:
    with served.connect() as connection:
        request = post(INFER, BODY)
        for _ in range(3):
            for begin in range(0, len(request), 10):
                connection.sendall(request[begin : begin + 10])
                time.sleep(0.001)
            assert read_answer(connection).status == 200


def test_garbage_behind_a_request_does_not_pass_for_its_answer() -> None:
    with serve() as served, served.connect() as connection:
        connection.sendall(post("/v2/models/slow/infer", b'{"inputs":[]}') + b"\x00nonsense\r\n\r\n")
        assert connection.recv(65536) == b""


def test_many_requests_sent_at_once_are_answered_in_order(served: Served) -> None:
    body = b'{"id":"%d","inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[%d]}]}'
    requests = b"".join(post(INFER, body % (index, index)) for index in range(200))
    with served.connect() as connection:
        connection.sendall(requests + post("/v2/nothing", b"", headers={"Connection": "close"}))
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert [int(found) for found in re.findall(rb'"id":"(\d+)"', received)] == list(range(200))
    assert [int(found) for found in re.findall(rb'"data":\[(\d+)\.0\]', received)] == list(range(200))


def test_old_client_gets_its_answer_and_the_end_of_the_connection(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(post(INFER, BODY).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = read_answer(connection)

        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert is_closed(connection)


def test_idle_connection_is_kept_for_a_while(served: Served) -> None:
    with served.connect() as connection:
        for _ in range(3):
            connection.sendall(post(INFER, BODY))
            assert read_answer(connection).status == 200
            time.sleep(0.3)


def test_server_survives_whatever_comes() -> None:
    generator = random.Random(7)
    good = post(INFER, BODY, headers={"X-Compression-Tier": "dense", "Content-Type": "application/json"})
    with serve(body_timeout_seconds=0.5) as served:
        assert served.client.post(INFER, content=BODY).status_code == 200
        before = psutil.Process().memory_info().rss
        for round_number in range(300):
            request = bytearray(good)
            match round_number % 4:
                case 0:
                    request = bytearray(generator.randbytes(generator.randint(1, 2000)))
                case 1:
                    for _ in range(generator.randint(1, 8)):
                        request[generator.randrange(len(request))] = generator.randrange(256)
                case 2:
                    del request[generator.randrange(len(request)) :]
                case _:
                    cut = generator.randrange(len(request))
                    request[cut:cut] = request[: generator.randrange(len(request))]
            with served.connect() as connection:
                connection.sendall(request)
                if generator.random() < 0.1:
                    # Within its patience, the server says something or ends the connection.
                    received = connection.recv(65536)
                    assert received == b"" or received.startswith(b"HTTP/1.1 ")

        wait_until(lambda: served.client.post(INFER, content=BODY).status_code == 200)
        assert psutil.Process().memory_info().rss - before < 64 * MEBIBYTE
