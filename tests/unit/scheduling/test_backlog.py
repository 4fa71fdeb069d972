import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.scheduling.backlog import seconds_until_free


@pytest.mark.parametrize(
    ("busy", "waiting", "expected"),
    [
        ([0.0], 0.0, 0.0),
        ([2.0], 3.0, 5.0),
        ([0.0, 0.0], 3.0, 1.5),
        ([0.0, 5.0], 3.0, 3.0),
        ([1.0, 3.0], 6.0, 5.0),
        ([3.0, 1.0], 0.0, 1.0),
        ([-1.0, 4.0], 2.0, 2.0),
    ],
)
def test_seconds_until_free_follow_from_whose_turn_it_is(busy: list[float], waiting: float, expected: float) -> None:
    assert seconds_until_free(busy, waiting) == pytest.approx(expected)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 200))
def test_seconds_until_free_are_those_of_a_simulation(busy: list[int], waiting: int) -> None:
    """Hand out the work in small pieces, each to whoever is free first."""
    piece, free = 0.01, [float(seconds) for seconds in busy]
    for _ in range(round(waiting / 10 / piece)):
        first = free.index(min(free))
        free[first] += piece
    assert seconds_until_free(busy, waiting / 10) == pytest.approx(min(free), abs=piece * 1.01)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=6), st.floats(0, 200), st.floats(0, 200))
def test_more_work_never_takes_less(busy: list[float], first: float, second: float) -> None:
    less, more = sorted((first, second))
    assert seconds_until_free(busy, less) <= seconds_until_free(busy, more) + 1e-9
