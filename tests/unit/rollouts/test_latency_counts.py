import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.rollouts.latency_counts import LatencyCounts, latency_bounds

SECONDS = st.lists(st.floats(min_value=0, max_value=1000))


def test_bounds_reach_from_a_tenth_of_a_millisecond_to_what_no_request_may_take() -> None:
    bounds = latency_bounds()
    assert [bounds[0], bounds[-1]] == pytest.approx([1e-4, 104.8576])
    assert len(bounds) == 161
    ratios = [after / before for before, after in itertools.pairwise(bounds)]
    assert [min(ratios), max(ratios)] == pytest.approx([1.0905, 1.0905], abs=1e-4)


@given(SECONDS, st.floats(min_value=1e-3, max_value=10))
def test_slower_answers_are_counted_exactly_when_the_limit_is_a_bound(seconds: list[float], limit: float) -> None:
    counts = LatencyCounts.of(seconds, latency_bounds(limit))
    assert counts.slower_than(limit) == sum(each > limit for each in seconds)
    assert counts.total == len(seconds)


@given(SECONDS, st.floats(min_value=0, max_value=1000))
def test_slower_answers_are_never_too_many_when_the_limit_is_no_bound(seconds: list[float], limit: float) -> None:
    counts = LatencyCounts.of(seconds, latency_bounds())
    surely, at_most = sum(each > limit * 1.0906 for each in seconds), sum(each > limit for each in seconds)
    assert counts.slower_than(limit) <= at_most
    if 1e-4 <= limit < 96:
        assert counts.slower_than(limit) >= surely


@given(SECONDS, SECONDS)
def test_counts_of_two_processes_add_up(one: list[float], other: list[float]) -> None:
    bounds = latency_bounds(0.04)
    assert LatencyCounts.of(one, bounds) + LatencyCounts.of(other, bounds) == LatencyCounts.of([*one, *other], bounds)


def test_each_bound_comes_with_what_is_slower() -> None:
    counts = LatencyCounts.of([0.5, 1.0, 1.5, 9.0], (1.0, 2.0, 4.0))
    assert counts.upper_bounds() == [(1.0, 2), (2.0, 1), (4.0, 1), (math.inf, 0)]
