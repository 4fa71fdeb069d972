import logging
import threading

import pytest

from serveprune.observability.access_log import AccessLog
from serveprune.observability.request_observer import RequestObserver
from serveprune.observability.request_record import RequestRecord
from serveprune.observability.tracing import OpenTelemetry


class Kept(AccessLog):
    """Keeps what it is to write; waits where it is told to."""

    def __init__(self, *, holds: bool = False, sample_ratio: float = 1.0) -> None:
        super().__init__(sample_ratio=sample_ratio, slow_seconds=None, errors=True)
        self.records: list[RequestRecord] = []
        self.go_on = threading.Event()
        if not holds:
            self.go_on.set()

    def write(self, record: RequestRecord) -> None:
        assert self.go_on.wait(20)
        self.records.append(record)


def test_request_is_reported_once_however_often_it_ends() -> None:
    access = Kept()
    observer = RequestObserver(tracing=None, access=access)
    record = observer.begin("http", "/infer", [(b"x-request-id", b"mine"), (b"host", b"x")])
    assert observer.answer_headers(record) == (("x-request-id", "mine"),)
    observer.end(record)
    record.failed("CANCELLED", "too late to be true")
    observer.end(record)
    observer.stop(timeout_seconds=20.0)
    assert access.records == [record]
    assert record.code == "OK"


def test_sample_is_drawn_for_each_request_and_nothing_else_has_a_line() -> None:
    drawn = iter([0.1, 0.6, 0.4, 0.9])
    access = AccessLog(sample_ratio=0.5, slow_seconds=None, errors=False)
    observer = RequestObserver(tracing=None, access=access, chance=lambda: next(drawn))
    records = [observer.begin("http", "/infer", []) for _ in range(4)]
    observer.stop(timeout_seconds=20.0)
    assert [access.wants(record) for record in records] == [True, False, True, False]


def test_request_that_gets_neither_a_line_nor_a_span_wakes_nobody() -> None:
    tracing = OpenTelemetry(endpoint="http://127.0.0.1:9", sample_ratio=0.0)
    drawn = iter([0.9, 0.1, 0.9, 0.9])
    access = Kept(sample_ratio=0.5)
    observer = RequestObserver(tracing=tracing, access=access, chance=lambda: next(drawn))
    context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    plain, sampled, failed = (observer.begin("http", "/infer", []) for _ in range(3))
    traced = observer.begin("http", "/infer", [("traceparent", context)])
    failed.failed("INTERNAL", "no memory")
    for record in (plain, sampled, failed, traced):
        observer.end(record)
    observer.stop(timeout_seconds=20.0)
    assert access.records == [sampled, failed, traced]  # the last of them for its span
    assert plain.trace_response is not None
    assert int(plain.trace_response[-2:], 16) & 1 == 0
    tracing.close(timeout_seconds=0.1)


@pytest.mark.parametrize(
    ("header", "id", "expected"),
    [("h", "body", "h"), (None, "body", "body"), ("bad id", "body", "body"), ("bad id", 'worse"', None)],
)
def test_id_is_the_headers_or_the_bodys_or_made(header: str | None, id: str, expected: str | None) -> None:
    observer = RequestObserver(tracing=None, access=Kept())
    record = observer.begin("grpc", "S/M", [] if header is None else [("x-request-id", header)])
    observer.asked(record, model="m", version=None, id=id)
    [(_, answered)] = observer.answer_headers(record)
    assert answered == expected or (expected is None and len(answered) == 16)
    observer.stop(timeout_seconds=20.0)


def test_requests_that_cannot_be_reported_in_time_are_left_out_and_hold_nobody_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    access = Kept(holds=True)
    observer = RequestObserver(tracing=None, access=access)
    with caplog.at_level(logging.WARNING):
        for _ in range(6000):
            observer.end(observer.begin("http", "/infer", []))
        access.go_on.set()
        observer.stop(timeout_seconds=60.0)
    assert 4096 <= len(access.records) <= 4097
    assert f"{6000 - len(access.records)} requests are in no trace" in caplog.text
