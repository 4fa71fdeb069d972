import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.rollouts.confidence_bounds import (
    difference_lower,
    mean_upper,
    normal_quantile,
    wilson_lower,
    wilson_upper,
)

CONFIDENCES = st.floats(min_value=0.5, max_value=0.9999)


@st.composite
def samples(draw: st.DrawFn) -> tuple[int, int]:
    total = draw(st.integers(min_value=1, max_value=100_000))
    return draw(st.integers(min_value=0, max_value=total)), total


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        # Two-sided 95 %, as Newcombe prints them (Two-sided confidence intervals for the single proportion, Statistics
        # in Medicine 17, 1998, table I, method 3).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_bounds_are_the_published_ones(hits: int, total: int, low: float, high: float) -> None:
    assert wilson_lower(hits, total, confidence=0.975) == pytest.approx(low, abs=5e-5)
    assert wilson_upper(hits, total, confidence=0.975) == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        # scipy 1.17: binomtest(hits, total, alternative=...).proportion_ci(0.95, "wilson")
        (17, 500, 0.022978202916791406, 0.05003778811822128),
        (0, 200, 0.0, 0.013347160654775623),
        (500, 500, 0.9946180353701581, 1.0),
        (3, 1000, 0.0011995624784162675, 0.0074824913019056905),
    ],
)
def test_one_sided_wilson_bounds_are_those_of_scipy(hits: int, total: int, low: float, high: float) -> None:
    assert wilson_lower(hits, total, confidence=0.95) == pytest.approx(low, rel=1e-9)
    assert wilson_upper(hits, total, confidence=0.95) == pytest.approx(high, rel=1e-9)


@given(samples(), CONFIDENCES)
def test_wilson_bounds_are_where_a_score_test_just_rejects(sample: tuple[int, int], confidence: float) -> None:
    hits, total = sample
    low, high = (bound(hits, total, confidence=confidence) for bound in (wilson_lower, wilson_upper))
    assert 0 <= low <= hits / total + 1e-12
    assert hits / total - 1e-12 <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            score = abs(hits / total - bound) / math.sqrt(bound * (1 - bound) / total)
            assert score == pytest.approx(normal_quantile(confidence), abs=1e-5)
    assert wilson_upper(total - hits, total, confidence=confidence) == pytest.approx(1 - low, abs=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        # Two-sided 95 %, Newcombe 1998 (differences), table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_bounds_of_a_difference_are_the_published_ones(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    least = difference_lower(*one, other_hits=other[0], other_total=other[1], confidence=0.975)
    most = -difference_lower(*other, other_hits=one[0], other_total=one[1], confidence=0.975)
    assert [least, most] == pytest.approx([low, high], abs=5e-5)


def test_upper_bound_of_a_mean_is_so_many_standard_errors_above_it() -> None:
    values = [0.9, 1.0, 0.8, 1.0, 0.95, 0.7]
    # By hand: mean 5.35 / 6, and the standard error is that of the sample's standard deviation.
    error = statistics.stdev(values) / math.sqrt(6)
    most = mean_upper(6, sum(values), sum(value**2 for value in values), confidence=0.95)
    assert most == pytest.approx(5.35 / 6 + 1.6448536269514722 * error)


def test_upper_bound_of_a_mean_is_the_mean_when_all_values_are_equal() -> None:
    assert mean_upper(1000, 900.0, 810.0, confidence=0.999) == pytest.approx(0.9, abs=1e-9)


@given(st.lists(st.floats(min_value=-1, max_value=1), min_size=2), CONFIDENCES)
def test_upper_bound_of_a_mean_is_not_below_the_mean(values: list[float], confidence: float) -> None:
    total, squares = math.fsum(values), math.fsum(value**2 for value in values)
    assert mean_upper(len(values), total, squares, confidence=confidence) >= total / len(values)
