"""Ids and trace contexts over both protocols, by front ends whose requests are recorded."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import orjson
import pytest

from contract.grpc.messages import of_arrays
from contract.http.served import RawAnswer, post, read_answer
from contract.secured import BODY, INFER, Secured, eventually, secured
from serveprune.config.security import TokensConfig
from serveprune.frontends.grpc import direct_calls
from serveprune.observability.access_log import AccessLog
from serveprune.observability.request_observer import RequestObserver
from serveprune.observability.request_record import RequestRecord
from serveprune.observability.tracing import OpenTelemetry

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = f"00-{TRACE}-{PARENT}-00"
NOTHING = b'{"inputs":[]}'
"""What the models take that fail."""
ONE = np.ones((1, 1), dtype=np.float32)


class Kept(AccessLog):
    """Keeps the records in the place of writing lines."""

    def __init__(self) -> None:
        super().__init__(sample_ratio=1.0, slow_seconds=None, errors=True)
        self.records: list[RequestRecord] = []

    def write(self, record: RequestRecord) -> None:
        self.records.append(record)

    def next(self) -> RequestRecord:
        """Wait for the only record since the last call."""
        assert eventually(lambda: bool(self.records))
        [record] = self.records
        self.records.clear()
        return record


@dataclass
class Observed:
    """Front ends, and what they record."""

    secured: Secured
    kept: Kept

    def over_http(self, headers: Mapping[str, str], *, path: str = INFER, body: bytes = BODY) -> Mapping[str, str]:
        return self.http_answer(headers, path=path, body=body).headers

    def http_answer(self, headers: Mapping[str, str], *, path: str = INFER, body: bytes = BODY) -> RawAnswer:
        with self.secured.connect_plain() as connection:
            connection.sendall(post(path, body, headers=headers))
            return read_answer(connection)

    def over_grpc(self, headers: Mapping[str, str], *, model: str = "identity_fp32", id: str = "") -> Mapping[str, str]:
        message = of_arrays(model, x=ONE) if model in ("identity_fp32", "nobody") else of_arrays(model)
        message.id = id
        metadata = tuple((name.lower(), value) for name, value in headers.items())
        with self.secured.stub() as stub:
            try:
                _, call = stub.ModelInfer.with_call(message, metadata=metadata)
            except grpc.RpcError as raised:
                call = raised
            return dict(call.trailing_metadata())


@contextlib.contextmanager
def observed(*, tracing: OpenTelemetry | None = None, **options: Any) -> Iterator[Observed]:
    kept = Kept()
    observer = RequestObserver(tracing=tracing, access=kept)
    with secured(observer=observer, **options) as running:
        yield Observed(running, kept)
    observer.stop(timeout_seconds=20.0)


@pytest.fixture(scope="module")
def tracing() -> OpenTelemetry:
    return OpenTelemetry(endpoint="http://127.0.0.1:9", sample_ratio=0.0)


@pytest.fixture(params=["direct calls", "a thread each"], scope="module")
def both(request: pytest.FixtureRequest, tracing: OpenTelemetry) -> Iterator[Observed]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "a thread each":
            patch.setattr(direct_calls, "_NAMES", ("a_name_of_the_future",))
        with observed(tracing=tracing) as running:
            yield running


Ask = Callable[[Observed, Mapping[str, str]], Mapping[str, str]]


def over_asgi(both: Observed, headers: Mapping[str, str]) -> Mapping[str, str]:
    return both.over_http(headers, body=BODY.ljust(2**17))


WAYS: Mapping[str, Ask] = {
    "HTTP": lambda both, headers: both.over_http(headers),
    "HTTP through ASGI": over_asgi,
    "gRPC": lambda both, headers: both.over_grpc(headers),
}


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def ask(request: pytest.FixtureRequest, both: Observed) -> Callable[[Mapping[str, str]], Mapping[str, str]]:
    way: Ask = request.param
    return lambda headers: way(both, headers)


def test_context_goes_in_and_out(both: Observed, ask: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
    answered = ask({"traceparent": CONTEXT, "tracestate": "a=b"})["traceresponse"]
    version, trace, span, flags = answered.split("-")
    assert (version, trace, flags) == ("00", TRACE, "00")
    assert len(span) == 16
    assert span != PARENT
    assert both.kept.next().trace_response == answered


@pytest.mark.parametrize("text", ["", "nothing", "00-1-2-3", f"00-{'0' * 32}-{PARENT}-01", "x" * 3000, "00-" * 100])
def test_broken_context_is_as_none(
    both: Observed, ask: Callable[[Mapping[str, str]], Mapping[str, str]], text: str
) -> None:
    answered = ask({"traceparent": text, "tracestate": text})
    assert TRACE not in answered["traceresponse"]
    assert both.kept.next().code == "OK"


def test_id_of_a_request_is_that_of_its_answer(
    both: Observed, ask: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> None:
    assert ask({"x-request-id": "mine-1"})["x-request-id"] == "mine-1"
    record = both.kept.next()
    assert (record.request_id, record.model, record.code) == ("mine-1", "identity_fp32", "OK")
    assert record.bytes_in > 0
    assert record.bytes_out > 0


@pytest.mark.parametrize("text", ["x" * 129, "a b", 'a"b', "{}", "a,b", "", "%0d%0aset-cookie:x", "\\"])
def test_hostile_id_is_replaced(
    both: Observed, ask: Callable[[Mapping[str, str]], Mapping[str, str]], text: str
) -> None:
    made = ask({"x-request-id": text})["x-request-id"]
    assert len(made) == 16
    assert both.kept.next().request_id == made


def test_id_in_the_message_serves_where_no_header_has_one(both: Observed) -> None:
    body = orjson.dumps(orjson.loads(BODY) | {"id": "of-body"})
    assert both.over_http({}, body=body)["x-request-id"] == "of-body"
    assert both.over_http({"x-request-id": "of-header"}, body=body)["x-request-id"] == "of-header"
    assert both.over_grpc({}, id="of-message")["x-request-id"] == "of-message"
    hostile = orjson.dumps(orjson.loads(BODY) | {"id": "a\nb"})
    assert len(both.over_http({}, body=hostile)["x-request-id"]) == 16
    assert eventually(lambda: len(both.kept.records) == 4)
    both.kept.records.clear()


def test_head_that_came_before_gets_ids_and_spans_of_its_own(both: Observed) -> None:
    with both.secured.connect_plain() as connection:
        answers = []
        for _ in range(4):
            connection.sendall(post(INFER, BODY, headers={"traceparent": CONTEXT}))
            answers.append(read_answer(connection).headers)
    assert len({answer["x-request-id"] for answer in answers}) == 4
    assert len({answer["traceresponse"] for answer in answers}) == 4
    assert eventually(lambda: len(both.kept.records) == 4)
    both.kept.records.clear()


@pytest.mark.parametrize(
    ("model", "code", "status"),
    [("nobody", "NOT_FOUND", 404), ("full", "RESOURCE_EXHAUSTED", 429), ("broken", "INTERNAL", 500)],
)
def test_failure_is_recorded_with_its_code_and_answered_with_its_id(
    both: Observed, model: str, code: str, status: int
) -> None:
    headers = {"x-request-id": "failed-1", "traceparent": CONTEXT}
    for body in (NOTHING, NOTHING.ljust(2**17)):
        answer = both.http_answer(headers, path=f"/v2/models/{model}/infer", body=body)
        assert (answer.status, answer.headers["x-request-id"]) == (status, "failed-1")
        record = both.kept.next()
        assert (record.code, record.status, record.model) == (code, status, model)
    trailing = both.over_grpc(headers, model=model)
    assert trailing["x-request-id"] == "failed-1"
    assert TRACE in trailing["traceresponse"]
    assert ("retry-after" in trailing) == (model == "full")
    record = both.kept.next()
    assert (record.code, record.model) == (code, model)


def test_what_is_no_inference_is_not_recorded(both: Observed) -> None:
    for path in ("/v2", "/v2/health/ready", "/v2/models/identity_fp32", "/nowhere"):
        with both.secured.connect_plain() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nx-request-id: a\r\n\r\n".encode())
            assert "x-request-id" not in read_answer(connection).headers
    both.over_http({"x-request-id": "the-only-one"})
    assert both.kept.next().request_id == "the-only-one"


def test_broken_body_is_recorded(both: Observed) -> None:
    assert both.http_answer({"x-request-id": "no-json"}, body=b"{").status == 400
    record = both.kept.next()
    assert (record.request_id, record.code) == ("no-json", "INVALID_ARGUMENT")


def test_caller_that_leaves_is_recorded_as_such(both: Observed) -> None:
    with both.secured.connect_plain() as connection:
        connection.sendall(post("/v2/models/slow/infer", NOTHING, headers={"x-request-id": "gone"}))
        assert eventually(lambda: any(request.model == "slow" for request in both.secured.plane.requests))
        connection.shutdown(socket.SHUT_RDWR)
    record = both.kept.next()
    assert (record.request_id, record.code) == ("gone", "CANCELLED")
    both.secured.plane.release.set()


def test_request_without_a_token_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENS_OF_TEST", "a-token-that-nobody-has-01")
    with observed(tokens=TokensConfig(environment="TOKENS_OF_TEST")) as running:
        headers = {"x-request-id": "stranger"}
        answer = running.http_answer(headers)
        assert (answer.status, answer.headers["x-request-id"]) == (401, "stranger")
        assert running.kept.next().code == "UNAUTHENTICATED"
        assert running.over_grpc(headers)["x-request-id"] == "stranger"
        assert running.kept.next().code == "UNAUTHENTICATED"


def test_nothing_is_added_where_nothing_is_recorded() -> None:
    with secured() as running, running.connect_plain() as connection:
        connection.sendall(post(INFER, BODY, headers={"x-request-id": "a", "traceparent": CONTEXT}))
        headers = read_answer(connection).headers
        assert not {"x-request-id", "traceparent", "traceresponse"} & set(headers)
