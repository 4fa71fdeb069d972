"""Clients that lie, dawdle, leave, or speak something else."""

import contextlib
import gzip
import re
import threading
import time
from collections.abc import Callable

import orjson
import pytest

from contract.http.served import RawAnswer, Served, is_closed, post, read_answer, serve

INFER = "/v2/models/identity_fp32/infer"
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1]}]}'
LIMIT_BYTES = 2**20
PATIENCE_SECONDS = 0.5


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def exchange(served: Served, request: bytes) -> RawAnswer:
    with served.connect() as connection:
        connection.sendall(request)
        return read_answer(connection)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
        post(INFER, b"", headers={"Content-Length": "-5"}),
        post(INFER, b"", headers={"Content-Length": "many"}),
        post(INFER, b"", headers={"Content-Length": "9" * 30}),
        post(INFER, BODY, headers={"Transfer-Encoding": "chunked"}),
        b"GET \xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=str,
)
def test_what_is_no_http_is_refused_in_json_and_the_connection_closed(served: Served, request_bytes: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(request_bytes)
        answer = read_answer(connection)

        assert answer.status == 400
        assert "expected" in answer.error
        assert is_closed(connection)


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({"Inference-Header-Content-Length": "500"}, BODY, "got a declared length of 500"),
        ({"Inference-Header-Content-Length": "99999999999999999"}, BODY, "declared length"),
        ({"Inference-Header-Content-Length": "0"}, BODY, "declared length of 0"),
        ({"Inference-Header-Content-Length": "-1"}, BODY, "expected a number of bytes"),
        ({"Inference-Header-Content-Length": "ten"}, BODY, "expected a number of bytes"),
        ({"Inference-Header-Content-Length": "10"}, BODY, "expected JSON"),
        ({}, BODY[:-1], "expected JSON"),
        ({}, b"", "expected JSON"),
        ({"Content-Encoding": "gzip"}, BODY, "expected gzip"),
        ({"Content-Encoding": "gzip"}, gzip.compress(BODY, mtime=0)[:-5], "ends before"),
    ],
)
def test_body_is_400_when_it_is_not_what_its_headers_say(
    served: Served, headers: dict[str, str], body: bytes, message: str
) -> None:
    answer = exchange(served, post(INFER, body, headers=headers))

    assert answer.status == 400
    assert message in answer.error


def test_tiers_that_disagree_in_two_headers_are_400(served: Served) -> None:
    request = post(INFER, BODY, headers={"X-Compression-Tier": "int8", "x-compression-tier": "dense"})

    assert "x-compression-tier" in exchange(served, request).error


def test_connection_serves_on_after_an_error(served: Served) -> None:
    with served.connect() as connection:
        for body, status in ((BODY, 200), (b"{", 400), (b"", 400), (BODY, 200)):
            connection.sendall(post(INFER, body))
            assert read_answer(connection).status == status


def test_requests_sent_at_once_are_answered_in_order(served: Served) -> None:
    last = post("/v2/nothing", b"x", headers={"Connection": "close"})
    with served.connect() as connection:
        connection.sendall(post(INFER, BODY) + b"GET /v2/health/live HTTP/1.1\r\n\r\n" + last)
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"200", b"404"]


def test_requests_whose_heads_came_before_are_each_taken_for_what_they_say(served: Served) -> None:
    """From the third time on such a head is not parsed, unless the request is not whole or not alone."""
    ordinary = post(INFER, BODY)
    elsewhere = post(INFER.replace("fp32", "fp64"), BODY.replace(b"FP32", b"FP64"))
    no_such_tier = post(INFER, BODY, headers={"x-compression-tier": "none"})
    broken = post(INFER, b"{" * len(BODY))
    last = post(INFER, BODY, headers={"Connection": "close"})
    with served.connect() as connection:
        for _ in range(4):
            for request, status in ((ordinary, 200), (elsewhere, 200), (no_such_tier, 404), (broken, 400)):
                connection.sendall(request)
                answer = read_answer(connection)
                assert answer.status == status
                if status == 200:
                    named = orjson.loads(answer.body)["model_name"]
                    assert named == ("identity_fp64" if request == elsewhere else "identity_fp32")
            connection.sendall(ordinary[:-10])
            time.sleep(0.02)
            connection.sendall(ordinary[-10:])
            assert read_answer(connection).status == 200
            with served.connect() as another:
                another.sendall(ordinary + broken + last)
                received = b"".join(iter(lambda: another.recv(65536), b""))
            assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"400", b"200"]


def test_requests_that_come_together_are_submitted_before_any_is_computed() -> None:
    with serve() as served, contextlib.ExitStack() as opened:
        connections = [opened.enter_context(served.connect()) for _ in range(21)]
        for connection in connections:
            connection.sendall(post(INFER, BODY))
            assert read_answer(connection).status == 200
        served.plane.rounds.clear()
        served.plane.may_submit.clear()
        connections[0].sendall(post(INFER, BODY))
        wait_until(lambda: len(served.plane.requests) == 22)
        for connection in connections[1:]:
            connection.sendall(post(INFER, BODY))
        served.plane.may_submit.set()

        assert [read_answer(connection).status for connection in connections] == [200] * 21
        assert sum(served.plane.rounds) == 21
        assert len(served.plane.rounds) <= 4, served.plane.rounds


@pytest.mark.parametrize("split", [1, 40, 120, 160])
def test_offer_of_http2_is_declined_and_the_body_kept(served: Served, split: int) -> None:
    request = post(
        INFER, BODY, headers={"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    )
    with served.connect() as connection:
        for _ in range(2):
            connection.sendall(request[:split])
            time.sleep(0.02)
            connection.sendall(request[split:])
            assert read_answer(connection).status == 200


def test_offer_of_http2_behind_a_request_does_not_start_that_one_again() -> None:
    offer = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with serve() as served, served.connect() as connection:
        connection.sendall(post("/v2/models/slow/infer", b'{"inputs":[]}'))
        assert served.plane.entered.wait(20)
        connection.sendall(offer)
        time.sleep(0.05)
        served.plane.release.set()
        received = b""
        while received.count(b"HTTP/1.1 ") < 2:
            received += connection.recv(65536)

        assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"200"]
        assert len(served.plane.requests) == 1


@pytest.mark.parametrize("pause_seconds", [0.0, 0.05])
def test_idle_connection_is_closed_also_when_it_was_answered_before_its_body_came(
    monkeypatch: pytest.MonkeyPatch, pause_seconds: float
) -> None:
    monkeypatch.setattr("serveprune.frontends.http.endpoint._KEEP_ALIVE_SECONDS", 0.2)
    with serve() as served, served.connect() as connection:
        request = post("/v2/nothing", b"{}")
        connection.sendall(request[:-2])
        time.sleep(pause_seconds)
        connection.sendall(request[-2:])
        assert read_answer(connection).status == 404
        assert is_closed(connection)


def test_slow_request_behind_another_takes_nothing_from_the_first() -> None:
    with serve(body_timeout_seconds=PATIENCE_SECONDS) as served, served.connect() as connection:
        connection.sendall(post("/v2/models/slow/infer", b'{"inputs":[]}'))
        assert served.plane.entered.wait(20)
        connection.sendall(post("/v2/nothing", b"{}")[:-1])
        time.sleep(2 * PATIENCE_SECONDS)
        served.plane.release.set()
        assert read_answer(connection).status == 200


def test_chunked_body_is_read(served: Served) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:]))
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    assert exchange(served, head + chunks + b"0\r\n\r\n").status == 200


def test_client_that_expects_100_is_told_to_continue(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(post(INFER, b"", headers={"Expect": "100-continue"}, length=len(BODY)))
        assert connection.recv(64) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_answer(connection).status == 200


@pytest.mark.parametrize("length", [LIMIT_BYTES + 1, 10**18])
def test_body_over_the_limit_is_413_before_it_is_sent(length: int) -> None:
    with serve(max_request_bytes=LIMIT_BYTES) as served, served.connect() as connection:
        connection.sendall(post(INFER, b"", length=length))
        answer = read_answer(connection)

        assert answer.status == 413
        assert f"at most {LIMIT_BYTES} bytes" in answer.error
        assert served.rejected == ["RESOURCE_EXHAUSTED"]


def test_bodies_over_the_common_budget_are_429_until_others_end() -> None:
    part = bytes(LIMIT_BYTES - 1)
    limits = {"max_request_bytes": LIMIT_BYTES, "max_buffered_bytes": 2 * LIMIT_BYTES}
    with serve(**limits) as served, contextlib.ExitStack() as opened:
        unfinished = [opened.enter_context(served.connect()) for _ in range(2)]
        for connection in unfinished:
            connection.sendall(post(INFER, part, length=LIMIT_BYTES))
        # Not by asking: a request that is admitted meanwhile takes of what it asks for.
        budget = served.frontend._endpoint._application._budget
        wait_until(lambda: budget._taken_bytes == 2 * len(part))
        answer = served.client.post(INFER, content=BODY)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "server.max_buffered_bytes" in answer.json()["error"]
        assert set(served.rejected) == {"RESOURCE_EXHAUSTED"}

        for connection in unfinished:
            connection.close()
        wait_until(lambda: served.client.post(INFER, content=BODY).status_code == 200)


def test_budget_is_given_back_when_a_request_is_submitted() -> None:
    with serve(max_request_bytes=LIMIT_BYTES, max_buffered_bytes=LIMIT_BYTES) as served, served.connect() as slow:
        padded = b'{"inputs":[]' + b" " * (LIMIT_BYTES - 20) + b"}"
        slow.sendall(post("/v2/models/slow/infer", padded))
        assert served.plane.entered.wait(20)

        assert served.client.post(INFER, content=BODY).status_code == 200
        served.plane.release.set()
        assert read_answer(slow).status == 200


def test_body_over_the_limit_is_413_for_a_client_that_sends_all_of_it_first() -> None:
    with serve(max_request_bytes=LIMIT_BYTES) as served:
        answer = served.client.post(INFER, content=bytes(8 * LIMIT_BYTES))
        assert answer.status_code == 413
        assert served.client.post(INFER, content=BODY).status_code == 200


def test_chunked_body_is_413_when_it_grows_over_the_limit() -> None:
    with serve(max_request_bytes=LIMIT_BYTES) as served, served.connect() as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(17):
            connection.sendall(b"%x\r\n%s\r\n" % (2**16, bytes(2**16)))
        assert read_answer(connection).status == 413


def test_zipped_body_is_413_when_it_inflates_over_the_limit() -> None:
    with serve(max_request_bytes=LIMIT_BYTES) as served:
        answer = served.client.post(INFER, content=gzip.compress(bytes(2**26)), headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 413


def test_64_megabytes_are_answered(served: Served) -> None:
    elements = 2**24
    text = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"parameters":{"binary_data_size":%d}}],'
        b'"parameters":{"binary_data_output":true}}' % (elements, 4 * elements)
    )
    content = bytes(range(256)) * (4 * elements // 256)

    answer = served.client.post(
        INFER, content=text + content, headers={"Inference-Header-Content-Length": str(len(text))}
    )

    assert answer.status_code == 200
    assert answer.content[int(answer.headers["inference-header-content-length"]) :] == content


def test_large_json_is_answered_when_it_is_decoded_and_encoded_apart(served: Served) -> None:
    elements = 2**18 + 1
    body = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,%d],"data":[%s]}]}' % (
        elements,
        b",".join([b"0.123456"] * elements),
    )

    answer = served.client.post("/v2/models/identity_fp64/infer", content=body)

    assert answer.json()["outputs"][0]["data"] == [0.123456] * elements


@pytest.mark.parametrize(
    ("beginning", "status"),
    [
        (b"POST /v2 HT", 408),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: ", 408),
        (post(INFER, BODY[:-5], length=len(BODY)), 408),
        (f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n".encode(), 408),
    ],
    ids=str,
)
def test_slow_client_is_cut_off_with_408(beginning: bytes, status: int) -> None:
    with serve(body_timeout_seconds=PATIENCE_SECONDS) as served, served.connect() as connection:
        connection.sendall(beginning)
        answer = read_answer(connection)

        assert answer.status == status
        assert "within 0.5 s" in answer.error
        assert answer.headers["connection"] == "close"
        assert is_closed(connection)


def test_client_that_says_nothing_is_cut_off() -> None:
    with serve(body_timeout_seconds=PATIENCE_SECONDS) as served, served.connect() as connection:
        assert is_closed(connection)


def test_client_that_does_not_finish_a_refused_body_is_cut_off() -> None:
    with serve(body_timeout_seconds=PATIENCE_SECONDS) as served, served.connect() as connection:
        connection.sendall(post("/v2/nothing", b"abc", length=1000))

        assert read_answer(connection).status == 404
        assert is_closed(connection)


def test_client_that_leaves_mid_body_is_counted_and_leaves_nothing_behind() -> None:
    with serve() as served:
        with served.connect() as connection:
            connection.sendall(post(INFER, BODY[:-5], length=len(BODY)))
            time.sleep(0.1)
        wait_until(lambda: served.rejected == ["CANCELLED"])

        assert served.plane.requests == []
        assert served.client.post(INFER, content=BODY).status_code == 200


def test_client_that_leaves_cancels_what_has_not_begun() -> None:
    with serve() as served:
        body = b'{"inputs":[]}'
        occupants = [served.connect() for _ in range(4)]
        for connection in occupants:
            connection.sendall(post("/v2/models/slow/infer", body))
        wait_until(lambda: len(served.plane.answers) == 4)
        with served.connect() as leaver:
            leaver.sendall(post("/v2/models/slow/infer", body))
            wait_until(lambda: len(served.plane.answers) == 5)

        wait_until(served.plane.answers[4].cancelled)
        served.plane.release.set()
        for connection in occupants:
            assert read_answer(connection).status == 200
            connection.close()


def test_answer_is_504_when_the_data_plane_does_not_give_one_in_time() -> None:
    with serve(request_timeout_seconds=0.2) as served:
        answer = served.client.post("/v2/models/slow/infer", content=b'{"inputs":[]}')

        assert answer.status_code == 504
        assert set(answer.json()) == {"error"}


def test_others_are_answered_while_one_is_slow() -> None:
    with serve() as served:
        slow: list[int] = []
        thread = threading.Thread(
            target=lambda: slow.append(exchange(served, post("/v2/models/slow/infer", b'{"inputs":[]}')).status)
        )
        thread.start()
        assert served.plane.entered.wait(20)

        assert served.client.post(INFER, content=BODY).status_code == 200
        assert slow == []
        served.plane.release.set()
        thread.join(20)
        assert slow == [200]


def test_headers_reach_the_data_plane_also_when_their_head_came_before(served: Served) -> None:
    with served.connect() as connection:
        for _ in range(4):
            for user in ("eve", "adam"):
                connection.sendall(post(INFER, BODY, headers={"X-User": user}))
                assert read_answer(connection).status == 200
                assert (b"x-user", user.encode()) in served.plane.requests[-1].headers
