import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.scheduling.urgency import (
    AGEING_SECONDS,
    DEFAULT_PRIORITY,
    HIGHEST_PRIORITY,
    LOWEST_PRIORITY,
    due,
)

TIMES = st.floats(0, 1e5)
TARGETS = st.floats(0, 1e5) | st.just(float("inf"))


@pytest.mark.parametrize(
    ("enqueued", "target", "priority", "expected"),
    [
        (10.0, 10.2, DEFAULT_PRIORITY, 10.2),
        (10.0, 15.0, DEFAULT_PRIORITY, 11.0),
        (10.0, float("inf"), DEFAULT_PRIORITY, 11.0),
        (10.0, 10.2, HIGHEST_PRIORITY, 9.2),
        (10.0, 10.2, LOWEST_PRIORITY, 11.2),
        (10.0, float("inf"), LOWEST_PRIORITY, 12.0),
    ],
)
def test_due_is_the_target_or_an_age_whichever_is_first(
    enqueued: float, target: float, priority: int, expected: float
) -> None:
    assert due(enqueued=enqueued, target=target, priority=priority) == pytest.approx(expected)


@given(TIMES, TARGETS, st.integers(1, 3), st.floats(0.001, 1e5), st.floats(0, 1e5), st.integers(1, 3))
def test_job_is_not_overtaken_by_what_comes_much_later(
    enqueued: float, target: float, priority: int, later: float, slack: float, other: int
) -> None:
    """Whatever comes once a job has its age, and a second for each level of priority, goes behind it."""
    bound = AGEING_SECONDS * (1 + max(0, priority - other))
    arrival = enqueued + bound + later
    newcomer = due(enqueued=arrival, target=arrival + slack, priority=other)
    assert due(enqueued=enqueued, target=target, priority=priority) <= newcomer


@given(TIMES, TARGETS, TARGETS, st.integers(1, 3))
def test_nearer_target_goes_first_when_both_came_at_the_same_time(
    enqueued: float, first: float, second: float, priority: int
) -> None:
    nearer, farther = sorted((first, second))
    assert due(enqueued=enqueued, target=nearer, priority=priority) <= due(
        enqueued=enqueued, target=farther, priority=priority
    )
