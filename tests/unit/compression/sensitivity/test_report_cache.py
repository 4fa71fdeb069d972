import logging
from pathlib import Path

import pytest
from unit.cli.sensitivities import report

from serveprune.compression.sensitivity.report_cache import ReportCache


def test_report_cache_gives_back_what_was_written_and_says_that_it_was_kept(tmp_path: Path) -> None:
    ReportCache(tmp_path, recipe={"graph": "a"}).write(report())
    found = ReportCache(tmp_path, recipe={"graph": "a"}).read()
    assert found == report().model_copy(update={"cached": True})
    assert ReportCache(tmp_path, recipe={"graph": "b"}).read() is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_report_cache_asks_for_a_new_measurement_when_the_entry_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ReportCache(tmp_path, recipe={"graph": "a"})
    cache.write(report())
    (entry,) = tmp_path.iterdir()
    entry.write_text(entry.read_text()[:100])
    with caplog.at_level(logging.WARNING):
        assert cache.read() is None
    assert "cannot be read and is made anew" in caplog.text
