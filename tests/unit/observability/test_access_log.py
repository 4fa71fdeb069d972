import logging

import pytest

from serveprune.observability.access_log import AccessLog, fields_of
from serveprune.observability.request_record import RequestRecord


def ended(*, code: str = "OK", seconds: float = 0.25, is_sampled: bool = False) -> RequestRecord:
    record = RequestRecord("grpc", "id-1", "S/M", received=10.0, received_ns=0, is_sampled=is_sampled)
    record.failed(code, "" if code == "OK" else "why")
    record.ended = 10.0 + seconds
    return record


@pytest.mark.parametrize(
    ("slow", "errors", "record", "expected"),
    [
        (None, True, ended(), False),
        (None, True, ended(is_sampled=True), True),
        (None, True, ended(code="NOT_FOUND"), True),
        (None, False, ended(code="NOT_FOUND"), False),
        (0.5, False, ended(seconds=0.49), False),
        (0.5, False, ended(seconds=0.5), True),
    ],
)
def test_line_is_for_the_sample_the_slow_and_the_failed(
    slow: float | None, errors: bool, record: RequestRecord, expected: bool
) -> None:
    assert AccessLog(sample_ratio=0.0, slow_seconds=slow, errors=errors).wants(record) is expected


def test_sample_is_the_share_that_was_asked_for() -> None:
    log = AccessLog(sample_ratio=0.25, slow_seconds=None, errors=True)
    assert sum(log.samples(number / 1000) for number in range(1000)) == 250
    assert not AccessLog(sample_ratio=0.0, slow_seconds=None, errors=True).samples(0.0)
    assert AccessLog(sample_ratio=1.0, slow_seconds=None, errors=True).samples(0.999999)


def test_line_says_what_is_known_and_nothing_else() -> None:
    record = ended(code="NOT_FOUND")
    record.model, record.bytes_in = "nobody", 7
    assert fields_of(record) == {
        "request_id": "id-1",
        "protocol": "grpc",
        "model": "nobody",
        "code": "NOT_FOUND",
        "total_seconds": 0.25,
        "bytes_in": 7,
        "bytes_out": 0,
        "error": "why",
    }


@pytest.mark.parametrize(
    ("code", "level"), [("OK", "INFO"), ("NOT_FOUND", "WARNING"), ("UNAVAILABLE", "WARNING"), ("INTERNAL", "ERROR")]
)
def test_level_tells_whose_fault_it_is(code: str, level: str) -> None:
    written: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record)

    logger, handler = logging.getLogger("serveprune.access"), Keeping()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        AccessLog(sample_ratio=1.0, slow_seconds=None, errors=True).write(ended(code=code, is_sampled=True))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert [record.levelname for record in written] == [level]
