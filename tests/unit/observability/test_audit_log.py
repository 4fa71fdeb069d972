import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serveprune.observability.audit_log import AuditEvent, AuditLog


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_line_says_when_and_what_and_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "store" / "audit.jsonl"
    log = AuditLog(file, now=lambda: datetime(2026, 3, 1, 12, 0, 0, 123_456, UTC))
    first = log.add(AuditEvent.ROLLOUT, {"model": "a", "who": None})
    log.add(AuditEvent.REQUEST, {"model": "b"})

    assert first == {"time": "2026-03-01T12:00:00.123+00:00", "event": "rollout", "model": "a", "who": None}
    assert lines(file) == [first, {"time": first["time"], "event": "request", "model": "b"}]


def test_lines_of_several_logs_and_threads_stay_whole(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    logs = [AuditLog(file) for _ in range(2)]

    def write(log: AuditLog) -> None:
        for _ in range(200):
            log.add(AuditEvent.REQUEST, {"why": "x" * 1000})

    threads = [threading.Thread(target=write, args=(log,)) for log in logs for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["why"] for line in lines(file)] == ["x" * 1000] * 800


def test_line_with_breaks_in_it_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    AuditLog(file).add(AuditEvent.REFUSAL, {"asked": "GET /\n{}\u2028\ud800"})
    (line,) = lines(file)
    assert line["asked"] == "GET /\n{}\u2028\ud800"


def test_line_that_cannot_be_written_is_in_the_servers_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    line = AuditLog(tmp_path / "file" / "audit.jsonl").add(AuditEvent.REQUEST, {"who": "ada"})
    assert line["who"] == "ada"
    assert "cannot be written" in caplog.text
    assert '"who": "ada"' in caplog.text
