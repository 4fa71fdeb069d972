"""Whether what a canary did in a window breaks a bound. Pure; `docs/guards.md` explains it to operators.

A breach ends a rollout for good, so each guard is a test: the bound is broken only if that is known with the configured
confidence. Percentiles are never estimated: "the 99th percentile is above 40 ms" is the same as "more than 1 % of the
answers took longer than 40 ms", and shares have exact counts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serveprune.config.guards import GuardsConfig
from serveprune.rollouts.confidence_bounds import (
    difference_lower,
    mean_difference_lower,
    mean_upper,
    normal_quantile,
    wilson_lower,
    wilson_upper,
)
from serveprune.rollouts.judgement import Finding, Judgement, Verdict
from serveprune.rollouts.latency_counts import LatencyCounts
from serveprune.rollouts.window import Counts

SLOW_RATIO = 0.01
"""Answers that may be slower than the 99th percentile / answers."""

LEAST_COMPARISONS = 30
"""Below this the mean of agreements is too far from a normal distribution for its bound, whatever the config asks."""


def judge(guards: GuardsConfig, *, canary: Counts, stable: Counts) -> Judgement:
    """Judge the canary by every bound that is set.

    Args:
        guards: The bounds.
        canary: What it did in the window.
        stable: What the stable side did; only the bounds that are relative to it look there.
    """
    evidence = _Evidence(canary, stable, guards.min_samples, guards.confidence)
    return Judgement(tuple(_GUARDS[name](name, bound, evidence) for name, bound in guards.bounds.items()))


@dataclass(frozen=True, slots=True)
class _Evidence:
    canary: Counts
    stable: Counts
    min_samples: int
    confidence: float


def _error_ratio(guard: str, limit: float, evidence: _Evidence) -> Finding:
    errors, requests = evidence.canary.errors, evidence.canary.requests
    if requests < evidence.min_samples:
        return _not_enough(guard, "error ratio", f"{requests} requests to the canary", evidence.min_samples)
    least = wilson_lower(errors, requests, confidence=evidence.confidence)
    figures = (
        f"error ratio {errors / requests:.3g} ({errors} of {requests}; at least {_told_from(least, limit)} "
        f"{_known(evidence.confidence)}), limit {limit:g}"
    )
    return _finding(guard, least > limit, figures)


def _error_ratio_above_stable(guard: str, limit: float, evidence: _Evidence) -> Finding:
    canary, stable = evidence.canary, evidence.stable
    for side, requests in (("the canary", canary.requests), ("the stable side", stable.requests)):
        if requests < evidence.min_samples:
            return _not_enough(
                guard, "error ratio above stable", f"{requests} requests to {side}", evidence.min_samples
            )
    least = difference_lower(
        canary.errors,
        canary.requests,
        other_hits=stable.errors,
        other_total=stable.requests,
        confidence=evidence.confidence,
    )
    above = canary.errors / canary.requests - stable.errors / stable.requests
    figures = (
        f"error ratio {above:.3g} above stable ({canary.errors} of {canary.requests}, stable {stable.errors} of "
        f"{stable.requests}; at least {_told_from(least, limit)} {_known(evidence.confidence)}), limit {limit:g}"
    )
    return _finding(guard, least > limit, figures)


def _p99(guard: str, limit_ms: float, evidence: _Evidence) -> Finding:
    latencies = evidence.canary.latencies
    if latencies.total < evidence.min_samples:
        return _not_enough(guard, "latency", f"{latencies.total} answers of the canary", evidence.min_samples)
    slow, least = _slow_share(latencies, limit_ms / 1e3, evidence.confidence)
    words = _slow_words(slow, latencies, least, bound=f"{limit_ms:g} ms", confidence=evidence.confidence)
    return _finding(guard, least > SLOW_RATIO, words)


def _p99_times_stable(guard: str, factor: float, evidence: _Evidence) -> Finding:
    """Compare two 99th percentiles without estimating either.

    A bound that the stable side's percentile is below (its order statistics, counted in buckets), then whether the
    canary's is above that, times the factor. Both hold with half of the doubt, so the whole does with all of it
    (Bonferroni). For quantiles from order statistics see Hahn and Meeker, Statistical Intervals (1991), chapter 5.
    """
    canary, stable = evidence.canary.latencies, evidence.stable.latencies
    confidence = (1 + evidence.confidence) / 2
    needed = max(evidence.min_samples, _samples_for_a_p99(confidence))
    if canary.total < evidence.min_samples:
        said = f"{canary.total} answers of the canary"
        return _not_enough(guard, "latency against stable", said, evidence.min_samples)
    if stable.total < needed:
        return _not_enough(guard, "latency against stable", f"{stable.total} answers of the stable side", needed)
    highest = _p99_at_most(stable, confidence)
    if math.isinf(highest):
        said = f"latency against stable not judged: stable's 99th percentile may be above {stable.bounds[-1]:.3g} s"
        return Finding(guard, Verdict.NOT_ENOUGH_SAMPLES, said)
    slow, least = _slow_share(canary, factor * highest, confidence)
    bound = f"{_milliseconds(factor * highest)}, {factor:g} times what stable's 99th percentile is at most"
    words = _slow_words(slow, canary, least, bound=bound, confidence=confidence)
    return _finding(guard, least > SLOW_RATIO, words)


def _agreement(guard: str, limit: float, evidence: _Evidence) -> Finding:
    seen = evidence.canary.agreements
    needed = max(evidence.min_samples, LEAST_COMPARISONS)
    if seen.count < needed:
        return _not_enough(guard, "agreement", f"{seen.count} answers compared", needed)
    most = mean_upper(seen.count, seen.total, seen.squares, confidence=evidence.confidence)
    figures = (
        f"agreement {seen.total / seen.count:.4g} (mean of {seen.count}; at most {_told_from(most, limit)} "
        f"{_known(evidence.confidence)}), limit {limit:g}"
    )
    return _finding(guard, most < limit, figures)


def _agreement_below_stable(guard: str, limit: float, evidence: _Evidence) -> Finding:
    canary, stable = evidence.canary.agreements, evidence.stable.agreements
    needed = max(evidence.min_samples, LEAST_COMPARISONS)
    for side, seen in (("the canary", canary), ("the stable side", stable)):
        if seen.count < needed:
            return _not_enough(guard, "agreement below stable", f"{seen.count} answers of {side} compared", needed)
    least = mean_difference_lower(
        (stable.count, stable.total, stable.squares),
        (canary.count, canary.total, canary.squares),
        confidence=evidence.confidence,
    )
    below = stable.total / stable.count - canary.total / canary.count
    figures = (
        f"agreement {below:.3g} below stable (mean {canary.total / canary.count:.4g} of {canary.count}, stable "
        f"{stable.total / stable.count:.4g} of {stable.count}; at least {_told_from(least, limit)} "
        f"{_known(evidence.confidence)}), limit {limit:g}"
    )
    return _finding(guard, least > limit, figures)


_GUARDS: Mapping[str, Callable[[str, float, _Evidence], Finding]] = {
    "max_error_ratio": _error_ratio,
    "max_error_ratio_above_stable": _error_ratio_above_stable,
    "max_p99_ms": _p99,
    "max_p99_times_stable": _p99_times_stable,
    "min_agreement": _agreement,
    "max_agreement_below_stable": _agreement_below_stable,
}


def _slow_share(latencies: LatencyCounts, seconds: float, confidence: float) -> tuple[int, float]:
    """Return how many answers were slower, and their share at least."""
    slow = latencies.slower_than(seconds)
    return slow, wilson_lower(slow, latencies.total, confidence=confidence)


def _p99_at_most(latencies: LatencyCounts, confidence: float) -> float:
    """Return the least bucket bound in seconds that the 99th percentile is below; infinite beyond all buckets."""
    return next(
        bound
        for bound, slower in latencies.upper_bounds()
        if math.isinf(bound) or wilson_upper(slower, latencies.total, confidence=confidence) <= SLOW_RATIO
    )


def _samples_for_a_p99(confidence: float) -> int:
    """Return how many answers it takes to know any bound that the 99th percentile is below."""
    return math.ceil((1 / SLOW_RATIO - 1) * normal_quantile(confidence) ** 2)


def _slow_words(slow: int, latencies: LatencyCounts, least: float, *, bound: str, confidence: float) -> str:
    return (
        f"share of answers slower than {bound}: {slow / latencies.total:.3g} ({slow} of {latencies.total}; at least "
        f"{_told_from(least, SLOW_RATIO)} {_known(confidence)}), limit {SLOW_RATIO:g}"
    )


def _finding(guard: str, is_broken: bool, figures: str) -> Finding:
    return Finding(guard, Verdict.BREACH if is_broken else Verdict.OK, figures)


def _not_enough(guard: str, what: str, said: str, needed: int) -> Finding:
    return Finding(guard, Verdict.NOT_ENOUGH_SAMPLES, f"{what} not judged: {said} in the window, {needed} are needed")


def _known(confidence: float) -> str:
    return f"with {100 * confidence:.6g} % confidence"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms"


def _told_from(value: float, limit: float) -> str:
    """Return the value with as few digits, from 2, as tell it from the limit."""
    for digits in range(2, 17):
        text = f"{value:.{digits}g}"
        if text != f"{limit:.{digits}g}":
            return text
    return repr(value)
