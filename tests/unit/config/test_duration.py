from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.config.duration import duration_text, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90.0),
        ("10m", 600.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("0.5s", 0.5),
        (" 2m ", 120.0),
        (30, 30.0),
        (0.25, 0.25),
        ("30", 30.0),
        ("8784h", 31_622_400.0),
    ],
)
def test_duration_is_read_as_seconds(written: Any, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        *("", "0s", "-1s", "10 days", "1d", "10M", "m", "1e3", "1h 30m", "8785h", "9" * 30 + "h"),
        *(0, -1, 10**400, True, None, [], {}, float("nan"), float("inf")),
    ],
)
def test_duration_is_refused_when_it_is_none(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^expected a duration above 0 .+ such as 90s, 10m or 1h30m, got "):
        parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "written"), [(600, "10m"), (5400, "1h30m"), (90, "1m30s"), (3605, "1h5s"), (0.25, "0.25s"), (0, "0s")]
)
def test_duration_is_written_as_in_a_file(seconds: float, written: str) -> None:
    assert duration_text(seconds) == written


@given(st.integers(min_value=1, max_value=366 * 24 * 3600))
def test_whole_seconds_are_read_as_they_were_written(seconds: int) -> None:
    assert parse_duration(duration_text(seconds)) == seconds
