import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serveprune.observability.log_formats import JsonLines, TextLines
from serveprune.observability.logs import BoundedLines, configure_logs

NASTY = 'a\nb\r"c"\x1b[31m\u2028d\udc80{}'


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    own, root = logging.getLogger("serveprune"), logging.getLogger()
    before = own.handlers[:], own.level, own.propagate, root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    own.handlers[:], own.level, own.propagate, root.handlers[:], root.level = before


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().err.splitlines()


def documents(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_json_line_has_everything_in_one_object(lines: Callable[[], list[str]]) -> None:
    configure_logs(format="json", process="1", trace_ids=lambda: ("a" * 32, "b" * 16))
    logging.getLogger("serveprune.x").info("said %s", NASTY, extra={"fields": {"n": 1, "text": NASTY}})
    [line] = documents(lines())
    assert line["message"] == "said " + NASTY.replace("\udc80", "?")
    assert line["time"].endswith("Z")
    assert (line["level"], line["logger"], line["process"]) == ("INFO", "serveprune.x", "1")
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, "b" * 16)
    assert (line["n"], line["text"]) == (1, NASTY.replace("\udc80", "?"))


def test_json_line_holds_an_exception_with_its_traceback(lines: Callable[[], list[str]]) -> None:
    configure_logs(format="json")
    try:
        raise ValueError(NASTY)
    except ValueError:
        logging.getLogger("serveprune.x").exception("went wrong")
    [line] = documents(lines())
    assert line["exception"]["type"] == "ValueError"
    assert "test_logs.py" in line["exception"]["traceback"]
    assert line["message"] == "went wrong"


def test_text_line_stays_one_line_and_names_its_fields(lines: Callable[[], list[str]]) -> None:
    configure_logs(process="1")
    logging.getLogger("serveprune.x").warning("said %s", NASTY, extra={"fields": {"n": 1, "reason": "two words"}})
    [line] = lines()
    assert " WARNING [process 1] serveprune.x: said a\\x0ab" in line
    assert "\x1b" not in line
    assert line.endswith(' n=1 reason="two words"')


def test_libraries_write_from_warnings_on_and_the_same_way(lines: Callable[[], list[str]]) -> None:
    configure_logs(format="json", level="debug")
    logging.getLogger("uvicorn.error").info("not this")
    logging.getLogger("uvicorn.error").warning("but this")
    logging.getLogger("serveprune.x").debug("and this")
    assert [line["message"] for line in documents(lines())] == ["but this", "and this"]


@pytest.mark.parametrize(("level", "expected"), [("info", ["i", "w", "e"]), ("warning", ["w", "e"]), ("error", ["e"])])
def test_lines_below_the_level_are_left_out(lines: Callable[[], list[str]], level: str, expected: list[str]) -> None:
    configure_logs(format="json", level=level)
    own = logging.getLogger("serveprune.x")
    for write, text in ((own.debug, "d"), (own.info, "i"), (own.warning, "w"), (own.error, "e")):
        write(text)
    assert [line["message"] for line in documents(lines())] == expected


def test_configured_twice_each_line_is_written_once(lines: Callable[[], list[str]]) -> None:
    configure_logs()
    configure_logs(format="json")
    logging.getLogger("serveprune.x").info("once")
    logging.getLogger("other").warning("once")
    assert [line["message"] for line in documents(lines())] == ["once", "once"]


class Written:
    """A handler over a text, with a clock that stands still until it is moved."""

    def __init__(self, lines_per_second: float) -> None:
        self.now = 0.0
        self._stream = io.StringIO()
        self.handler = BoundedLines(self._stream, lines_per_second=lines_per_second, clock=lambda: self.now)
        self.handler.setFormatter(JsonLines(process="", trace_ids=lambda: None))

    def write(self, name: str, message: str, level: int = logging.ERROR) -> None:
        self.handler.handle(logging.LogRecord(name, level, __file__, 1, message, (), None))

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in documents(self._stream.getvalue().splitlines())]


def test_storm_of_lines_is_cut_and_counted() -> None:
    written = Written(lines_per_second=2)
    for number in range(1000):
        written.write("serveprune.x", str(number))
    assert written.messages == [str(number) for number in range(20)]

    written.now = 1.0
    written.write("serveprune.x", "afterwards")
    assert written.messages[20:] == ["980 lines were left out (server.logs.max_lines_per_second)", "afterwards"]


def test_storm_of_requests_hides_no_other_line() -> None:
    written = Written(lines_per_second=2)
    for number in range(1000):
        written.write("serveprune.access", str(number))
    written.write("serveprune.x", "important")
    assert written.messages[-1] == "important"
    assert len(written.messages) == 21


def test_exporters_repeat_themselves_once_a_minute() -> None:
    written = Written(lines_per_second=100)
    for second in range(0, 130, 5):
        written.now = float(second)
        written.write("opentelemetry.exporter", f"cannot reach it, try {second}")
    assert written.messages == [f"cannot reach it, try {second}" for second in (0, 60, 120)]


def test_overlong_messages_are_cut() -> None:
    record = logging.LogRecord("serveprune.x", logging.ERROR, __file__, 1, "x" * 10**6, (), None)
    assert len(TextLines(process="").format(record)) < 10_000
    assert len(JsonLines(process="", trace_ids=lambda: None).format(record)) < 10_000
