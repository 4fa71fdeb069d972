import json
from pathlib import Path
from typing import Any

import pytest

from serveprune.administration.refusals import Refusals
from serveprune.errors import Unauthenticated
from serveprune.observability.audit_log import AuditLog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Noting:
    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.file = folder / "audit.jsonl"
        self.refusals = Refusals(AuditLog(self.file), clock=self.clock)

    def note(self, times: int, *, asked: str = "GET /") -> None:
        for _ in range(times):
            self.refusals.note(Unauthenticated("who are you"), protocol="http", peer="1.2.3.4:5", asked=asked)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@pytest.fixture
def noting(tmp_path: Path) -> Noting:
    return Noting(tmp_path)


def test_refusal_is_noted_and_logged(noting: Noting, caplog: pytest.LogCaptureFixture) -> None:
    noting.note(1, asked="GET /admin\n" + "x" * 300)
    (line,) = noting.lines
    assert line["event"] == "refusal"
    assert (line["peer"], line["code"], line["unnoted_before"]) == ("1.2.3.4:5", "UNAUTHENTICATED", 0)
    assert len(line["asked"]) == 200
    (said,) = caplog.messages
    assert "\n" not in said


def test_no_more_than_thirty_a_minute_are_noted_and_the_next_says_how_many_were_not(noting: Noting) -> None:
    noting.note(50)
    assert len(noting.lines) == 30
    noting.clock.now += 59.9
    noting.note(1)
    assert len(noting.lines) == 30
    noting.clock.now += 0.1
    noting.note(2)
    assert [line["unnoted_before"] for line in noting.lines[30:]] == [21, 0]
