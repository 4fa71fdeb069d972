import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.config.guards import GuardsConfig
from serveprune.rollouts.guards import judge
from serveprune.rollouts.judgement import Finding, Verdict
from serveprune.rollouts.latency_counts import LatencyCounts, latency_bounds
from serveprune.rollouts.window import Agreements, Counts

OK, LACKING, BREACH = Verdict.OK, Verdict.NOT_ENOUGH_SAMPLES, Verdict.BREACH
BOUNDS = latency_bounds(0.040)


def counts(
    answers: int = 0,
    *,
    errors: int = 0,
    slow: int = 0,
    fast_ms: float = 10.0,
    slow_ms: float = 50.0,
    agreeing: Any = (),
) -> Counts:
    """Requests, of which so many failed; of the answers so many were slow."""
    seconds = [slow_ms / 1e3] * slow + [fast_ms / 1e3] * (answers - slow)
    values = list(agreeing)
    sums = Agreements(len(values), math.fsum(values), math.fsum(value**2 for value in values))
    return Counts(errors, LatencyCounts.of(seconds, BOUNDS), sums)


def finding(guards: dict[str, Any], canary: Counts, stable: Counts | None = None) -> Finding:
    config = GuardsConfig.model_validate(guards)
    (found,) = judge(config, canary=canary, stable=stable if stable is not None else counts()).findings
    return found


@pytest.mark.parametrize(
    ("errors", "requests", "verdict"),
    [
        # The score test by hand: breach when errors / n - 0.01 > 1.645 * sqrt(0.01 * 0.99 / n).
        (0, 200, OK),
        (4, 200, OK),  # 0.01 < 0.01157
        (5, 200, BREACH),  # 0.015 > 0.01157
        (8, 500, OK),  # 0.006 < 0.00732
        (9, 500, BREACH),  # 0.008 > 0.00732
        (1051, 100_000, OK),  # 0.00051 < 0.000518
        (1052, 100_000, BREACH),  # 0.00052 > 0.000518
        (199, 199, LACKING),
        (0, 0, LACKING),
    ],
)
def test_error_ratio_is_broken_when_it_is_known_to_be_above_the_limit(
    errors: int, requests: int, verdict: Verdict
) -> None:
    canary = counts(requests - errors, errors=errors)
    assert finding({"max_error_ratio": 0.01}, canary).verdict is verdict


def test_limit_of_no_error_is_kept_without_an_error_and_broken_by_one() -> None:
    assert finding({"max_error_ratio": 0}, counts(200)).verdict is OK
    assert finding({"max_error_ratio": 0}, counts(199, errors=1)).verdict is BREACH


def test_error_ratio_is_told_with_its_figures() -> None:
    found = finding({"max_error_ratio": 0.01}, counts(483, errors=17))
    assert found == Finding(
        "max_error_ratio", BREACH, "error ratio 0.034 (17 of 500; at least 0.023 with 95 % confidence), limit 0.01"
    )


def test_bound_is_told_with_as_many_digits_as_tell_it_from_the_limit() -> None:
    found = finding({"max_error_ratio": 0.01}, counts(98_948, errors=1052))
    assert "(1052 of 100000; at least 0.010002 with 95 % confidence), limit 0.01" in found.figures
    found = finding({"max_error_ratio": 0.01, "confidence": 0.999, "min_samples": 7}, counts(7))
    assert found.figures == "error ratio 0 (0 of 7; at least 0 with 99.9 % confidence), limit 0.01"


def test_missing_samples_are_told_with_how_many_are_needed() -> None:
    found = finding({"max_error_ratio": 0.01}, counts(120))
    assert found.figures == "error ratio not judged: 120 requests to the canary in the window, 200 are needed"


@pytest.mark.parametrize(
    ("canary", "stable", "verdict"),
    [
        # Newcombe's method 10, one-sided 95 %. 2 % against 1 % of 1000 each: Wilson bounds by hand 0.01391 (canary at
        # least) and 0.01666 (stable at most), so at least 0.01 - hypot(0.00609, 0.00666) = 0.00098.
        ((20, 1000), (10, 1000), OK),
        ((30, 1000), (10, 1000), BREACH),  # at least 0.02 - hypot(0.00768, 0.00666) = 0.00983
        ((30, 1000), (30, 1000), OK),
        ((199, 199), (0, 5000), LACKING),
        ((200, 200), (0, 199), LACKING),
    ],
)
def test_error_ratio_above_stable_is_broken_when_the_difference_is_known(
    canary: tuple[int, int], stable: tuple[int, int], verdict: Verdict
) -> None:
    sides = [counts(requests - errors, errors=errors) for errors, requests in (canary, stable)]
    assert finding({"max_error_ratio_above_stable": 0.005}, *sides).verdict is verdict


def test_error_ratio_above_stable_is_told_with_its_figures() -> None:
    found = finding({"max_error_ratio_above_stable": 0.005}, counts(970, errors=30), counts(990, errors=10))
    assert found.figures == (
        "error ratio 0.02 above stable (30 of 1000, stable 10 of 1000; at least 0.0098 with 95 % confidence), "
        "limit 0.005"
    )


@pytest.mark.parametrize(
    ("slow", "answers", "verdict"),
    # A p99 above the limit is a share of slow answers above 1 %: the same table as that of the error ratio.
    [(4, 200, OK), (5, 200, BREACH), (8, 500, OK), (9, 500, BREACH), (199, 199, LACKING)],
)
def test_p99_is_broken_when_more_than_one_percent_are_known_to_be_slower(
    slow: int, answers: int, verdict: Verdict
) -> None:
    assert finding({"max_p99_ms": 40}, counts(answers, slow=slow)).verdict is verdict


def test_p99_counts_only_what_is_slower_than_the_limit_itself() -> None:
    assert finding({"max_p99_ms": 40}, counts(1000, slow=1000, slow_ms=40.0)).verdict is OK
    assert finding({"max_p99_ms": 40}, counts(1000, slow=1000, slow_ms=40.001)).verdict is BREACH


def test_p99_is_not_judged_when_nearly_all_requests_fail() -> None:
    assert finding({"max_p99_ms": 40}, counts(100, errors=900)).verdict is LACKING


def test_p99_is_told_with_its_figures() -> None:
    found = finding({"max_p99_ms": 40}, counts(500, slow=17))
    assert found.figures == (
        "share of answers slower than 40 ms: 0.034 (17 of 500; at least 0.023 with 95 % confidence), limit 0.01"
    )


@pytest.mark.parametrize(
    ("canary", "stable", "verdict"),
    [
        # With 97.5 % each: of 1000 stable answers 3 may be slower than a bound on p99 (Wilson: 3 of 1000 are at most
        # 0.00878, 4 at most 0.01025), so p99 is known to be at most 10.77 ms, the bucket's bound above 10 ms.
        (counts(1000), counts(1000, slow=3), OK),
        (counts(1000, slow=30), counts(1000, slow=3), BREACH),
        (counts(1000, slow=16), counts(1000, slow=3), OK),  # 0.016 at least 0.00987
        (counts(1000, slow=17), counts(1000, slow=3), BREACH),  # at least 0.01063
        # With 4 slow ones p99 may be 50 ms.
        (counts(1000, slow=30), counts(1000, slow=4), OK),
        (counts(1000, slow=30, slow_ms=70.0), counts(1000, slow=4), BREACH),
        # 99 * 1.96**2 = 380.3
        (counts(1000, slow=30), counts(380), LACKING),
        (counts(1000, slow=30), counts(381), BREACH),
        (counts(199, slow=199), counts(1000), LACKING),
        # Beyond all buckets.
        (counts(1000), counts(1000, slow=500, slow_ms=200_000.0), LACKING),
    ],
)
def test_p99_against_stable_is_broken_when_it_is_known_to_be_above_what_stable_s_is_at_most(
    canary: Counts, stable: Counts, verdict: Verdict
) -> None:
    assert finding({"max_p99_times_stable": 1.2}, canary, stable).verdict is verdict


@pytest.mark.parametrize(("factor", "verdict"), [(1.2, BREACH), (2.0, OK), (0.5, BREACH)])
def test_p99_against_stable_allows_as_much_more_as_the_factor_says(factor: float, verdict: Verdict) -> None:
    # 15 ms against at most 10.77 ms.
    canary = counts(1000, slow=30, slow_ms=15.0)
    assert finding({"max_p99_times_stable": factor}, canary, counts(1000)).verdict is verdict


def test_p99_against_stable_needs_as_many_samples_as_asked_for_on_both_sides() -> None:
    guards = {"max_p99_times_stable": 1.2, "min_samples": 500}
    assert finding(guards, counts(500), counts(499)).verdict is LACKING
    assert finding(guards, counts(499), counts(500)).verdict is LACKING
    assert finding(guards, counts(500), counts(500)).verdict is OK


def test_p99_against_stable_is_told_with_its_figures() -> None:
    guards = {"max_p99_times_stable": 1.2}
    found = finding(guards, counts(1000, slow=30), counts(1000, slow=3))
    assert found.figures == (
        "share of answers slower than 12.92 ms, 1.2 times what stable's 99th percentile is at most: 0.03 (30 of 1000; "
        "at least 0.021 with 97.5 % confidence), limit 0.01"
    )
    found = finding(guards, counts(1000), counts(250))
    assert found.figures == (
        "latency against stable not judged: 250 answers of the stable side in the window, 381 are needed"
    )


@pytest.mark.parametrize(
    ("agreeing", "verdict"),
    [
        ([1.0] * 200, OK),
        ([1.0] * 199, LACKING),
        # 0 or 1 by hand: mean 0.92, deviation 0.27198, so at most 0.92 + 1.645 * 0.01923 = 0.95163.
        ([0.0] * 16 + [1.0] * 184, OK),
        ([0.0] * 17 + [1.0] * 183, BREACH),  # 0.915 + 1.645 * 0.01977 = 0.94752
        # The same mean, but all alike.
        ([0.94] * 200, BREACH),
        ([0.9500001] * 200, OK),
    ],
)
def test_agreement_is_broken_when_its_mean_is_known_to_be_below_the_limit(
    agreeing: list[float], verdict: Verdict
) -> None:
    assert finding({"min_agreement": 0.95}, counts(agreeing=agreeing)).verdict is verdict


def test_agreement_needs_thirty_comparisons_even_when_the_config_asks_for_fewer() -> None:
    guards = {"min_agreement": 0.95, "min_samples": 1}
    assert finding(guards, counts(agreeing=[0.0] * 29)).verdict is LACKING
    assert finding(guards, counts(agreeing=[0.0] * 30)).verdict is BREACH


def test_agreement_is_told_with_its_figures() -> None:
    found = finding({"min_agreement": 0.95}, counts(agreeing=[0.0] * 17 + [1.0] * 183))
    assert found.figures == "agreement 0.915 (mean of 200; at most 0.948 with 95 % confidence), limit 0.95"


@pytest.mark.parametrize(
    ("canary", "stable", "verdict"),
    [
        # 0 or 1 by hand. Means 0.9 and 0.99, deviations 0.30075 and 0.09975, standard errors 0.02127 and 0.00705, that
        # of the difference 0.02241: at least 0.09 - 1.645 * 0.02241 = 0.05314.
        ([0.0] * 20 + [1.0] * 180, [0.0] * 2 + [1.0] * 198, BREACH),
        # Means 0.91 and 0.99: 0.08 - 1.645 * 0.02148 = 0.04467.
        ([0.0] * 18 + [1.0] * 182, [0.0] * 2 + [1.0] * 198, OK),
        # What both sides suffer is forgiven.
        ([0.5] * 200, [0.54] * 200, OK),
        ([1.0] * 200, [0.0] * 200, OK),
        ([0.5] * 199, [1.0] * 200, LACKING),
        ([0.5] * 200, [1.0] * 199, LACKING),
    ],
)
def test_agreement_below_stable_is_broken_when_it_is_known_to_be(
    canary: list[float], stable: list[float], verdict: Verdict
) -> None:
    guards = {"max_agreement_below_stable": 0.05}
    assert finding(guards, counts(agreeing=canary), counts(agreeing=stable)).verdict is verdict


def test_agreement_below_stable_is_told_with_its_figures() -> None:
    canary, stable = counts(agreeing=[0.0] * 20 + [1.0] * 180), counts(agreeing=[0.0] * 2 + [1.0] * 198)
    assert finding({"max_agreement_below_stable": 0.05}, canary, stable).figures == (
        "agreement 0.09 below stable (mean 0.9 of 200, stable 0.99 of 200; at least 0.053 with 95 % confidence), "
        "limit 0.05"
    )


def test_every_bound_is_judged_and_told_in_order() -> None:
    config = GuardsConfig.model_validate(
        {
            "max_error_ratio": 0.01,
            "max_error_ratio_above_stable": 0.01,
            "max_p99_ms": 40,
            "max_p99_times_stable": 2,
            "min_agreement": 0.9,
            "max_agreement_below_stable": 0.01,
        }
    )
    compared = counts(1000, agreeing=[1.0] * 300)
    judgement = judge(config, canary=compared, stable=compared)
    assert [found.guard for found in judgement.findings] == list(config.bounds)
    assert judgement.verdict is OK
    assert judge(config, canary=counts(), stable=counts(1000)).verdict is LACKING


@given(
    st.integers(min_value=0, max_value=400),
    st.integers(min_value=0, max_value=40),
    st.integers(min_value=1, max_value=500),
    st.sampled_from(["max_error_ratio", "max_error_ratio_above_stable", "max_p99_ms", "max_p99_times_stable"]),
)
def test_guard_says_nothing_with_fewer_samples_than_asked_for(
    answers: int, errors: int, min_samples: int, guard: str
) -> None:
    guards = {guard: 0.5, "min_samples": min_samples}
    canary, stable = counts(answers, errors=errors, slow=answers), counts(5000)
    samples = answers if "p99" in guard else answers + errors
    assert (finding(guards, canary, stable).verdict is LACKING) == (samples < min_samples)
