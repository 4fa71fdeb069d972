from pathlib import Path

import pytest

from serveprune.artifacts.builder import BuildOutcome, BuildResult
from serveprune.compression.job import ProgressLine, ResultLine, failed_line, parse_line


def test_a_result_survives_the_line() -> None:
    result = BuildResult(BuildOutcome.REFUSED, key="k", reasons=("too slow",), seconds=1.5, bad_input=False)
    line = parse_line(ResultLine.of(result).model_dump_json().encode())
    assert isinstance(line, ResultLine)
    assert line.result() == result
    assert line.result(log=Path("build.log")).log == Path("build.log")


def test_progress_survives_the_line() -> None:
    line = parse_line(ProgressLine(stage="quantize", fraction=0.5).model_dump_json().encode())
    assert isinstance(line, ProgressLine)
    assert (line.progress.stage, line.progress.fraction) == ("quantize", 0.5)


@pytest.mark.parametrize(
    "text", [b"", b"hello", b"{}", b'{"line":"progress"}', b'{"line":"result","outcome":"fine"}', b"\xff\xfe"]
)
def test_parsing_fails_when_a_line_is_no_event(text: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_line(text)


def test_a_failure_is_cut_when_it_is_longer_than_a_table_can_show() -> None:
    assert len(failed_line("x" * 10_000).reasons[0]) < 1000
