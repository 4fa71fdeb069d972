import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.rollouts.latency_counts import LatencyCounts, latency_bounds
from serveprune.rollouts.window import Agreements, Counts, Window

BOUNDS = latency_bounds(0.04)


def test_window_counts_what_was_added() -> None:
    window = Window(60.0, bounds=BOUNDS)
    window.add(now=100.0, latencies_seconds=[0.010, 0.041], errors=1)
    window.add(now=100.5, latencies_seconds=[0.040])
    window.add_agreements([1.0, 0.5], now=101.0)
    counts = window.counts(now=101.0)
    assert (counts.requests, counts.errors) == (4, 1)
    assert counts.latencies == LatencyCounts.of([0.010, 0.041, 0.040], BOUNDS)
    assert counts.latencies.slower_than(0.04) == 1
    assert counts.agreements == Agreements(2, 1.5, 1.25)


def test_window_is_empty_before_anything_comes() -> None:
    counts = Window(60.0, bounds=BOUNDS).counts(now=5.0)
    assert (counts.requests, counts.latencies.total, counts.agreements.count) == (0, 0, 0)


def test_window_forgets_a_slot_at_a_time() -> None:
    window = Window(60.0, bounds=BOUNDS)
    for second in range(100):
        window.add(now=second + 0.5, errors=1)
    assert window.counts(now=99.9).errors == 60
    assert window.counts(now=100.1).errors == 59
    assert window.counts(now=129.0).errors == 30
    assert window.counts(now=500.0).errors == 0


def test_window_counts_as_of_now_what_comes_a_little_late() -> None:
    window = Window(60.0, bounds=BOUNDS)
    window.add(now=10.2, errors=1)
    window.add(now=9.9, errors=1)
    assert window.counts(now=69.5).errors == 2
    assert window.counts(now=70.0).errors == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_answers_that_cannot_be_compared_count_as_different(broken: float) -> None:
    window = Window(60.0, bounds=BOUNDS)
    window.add_agreements([1.0, broken], now=0.0)
    assert window.counts(now=0.0).agreements == Agreements(2, 1.0, 1.0)


EVENTS = st.lists(
    st.tuples(
        st.floats(min_value=0, max_value=200),
        st.lists(st.floats(min_value=0, max_value=1), max_size=3),
        st.integers(min_value=0, max_value=2),
    )
)


@given(EVENTS, st.floats(min_value=0, max_value=300))
def test_window_holds_all_of_the_last_while_and_nothing_older(events: list[Any], later: float) -> None:
    window = Window(60.0, bounds=BOUNDS)
    events = sorted(events)
    for now, latencies, errors in events:
        window.add(now=now, latencies_seconds=latencies, errors=errors)
    now = max([later, *(event[0] for event in events)])
    requests = window.counts(now=now).requests
    young, old = ([e for e in events if now - e[0] <= age] for age in (58.9, 60.1))
    assert sum(len(e[1]) + e[2] for e in young) <= requests <= sum(len(e[1]) + e[2] for e in old)


def test_window_keeps_its_size_however_long_it_runs() -> None:
    window = Window(60.0, bounds=BOUNDS)
    for second in range(10_000):
        window.add(now=float(second), errors=1)
    assert len(window._slots) == 60


def test_counts_of_two_processes_add_up() -> None:
    one = Counts(1, LatencyCounts.of([0.1], BOUNDS), Agreements(1, 1.0, 1.0))
    other = Counts(2, LatencyCounts.of([0.2, 0.3], BOUNDS), Agreements(1, 0.5, 0.25))
    assert one + other == Counts(3, LatencyCounts.of([0.1, 0.2, 0.3], BOUNDS), Agreements(2, 1.5, 1.25))
