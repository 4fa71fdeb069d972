"""Which tier meets the demands of a request, and what would be possible if none does. Pure."""

from collections.abc import Sequence

from serveprune.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServePruneError, Unavailable
from serveprune.routing.candidate import Candidate
from serveprune.routing.objective import Objective

FORECAST_MARGIN = 1.2
"""Forecasts are wrong by up to a fifth; a tier that needs that fifth is taken only where no other has it to spare."""

_RETRY_WHILE_BUILDING_SECONDS = 5.0


def choose(objective: Objective, candidates: Sequence[Candidate], *, elapsed_seconds: float) -> Candidate | None:
    """Return the best candidate that is predicted to answer in time, without a bound the first to answer.

    Args:
        objective: What the request demands of its latency; the candidates reach the quality it demands.
        candidates: At least one, from best to smallest.
        elapsed_seconds: Since the request arrived.

    Returns:
        ``None`` if no candidate would be in time.
    """
    fastest = min(candidates, key=lambda each: each.forecast.finish_seconds)
    if objective.max_latency_seconds is None:
        return fastest
    left = objective.max_latency_seconds - elapsed_seconds
    safe = (each for each in candidates if each.forecast.finish_seconds * FORECAST_MARGIN <= left)
    return next(safe, fastest if fastest.forecast.finish_seconds <= left else None)


def refusal(
    model: str,
    max_latency_seconds: float,
    candidates: Sequence[Candidate],
    *,
    ready: Sequence[Candidate],
    building: Sequence[str],
    elapsed_seconds: float,
) -> ServePruneError:
    """Return the error for a request that no candidate would answer in time.

    Args:
        model: Its name.
        max_latency_seconds: What the request demands.
        candidates: The tiers that reach the quality it demands; at least one.
        ready: All tiers that are ready: what would be possible.
        building: Tiers that are not settled, and may do better.
        elapsed_seconds: Since the request arrived.
    """
    asked = milliseconds(max_latency_seconds)
    possible = [each for each in candidates if each.forecast.alone_seconds <= max_latency_seconds]
    if possible and elapsed_seconds >= max_latency_seconds:
        spent = milliseconds(elapsed_seconds)
        return DeadlineExceeded(f"model {model}: max_latency_ms is {asked}, and {spent} had passed before its turn")
    if possible:
        finishes = ", ".join(f"{each.tier} in {milliseconds(each.forecast.finish_seconds)}" for each in candidates)
        surplus_seconds = min(each.forecast.finish_seconds - max_latency_seconds for each in possible)
        retry_after_seconds = max(surplus_seconds, 0.0)
        return ResourceExhausted(
            f"model {model}: no tier would answer within {asked} now: {finishes}; allow more, or retry in "
            f"{milliseconds(retry_after_seconds)}",
            retry_after_seconds=retry_after_seconds,
        )
    figures = ", ".join(map(_alone, ready))
    impossible = f"model {model}: no tier answers within {asked} even on an idle server"
    if len(candidates) < len(ready):
        impossible = f"model {model}: no tier of that quality answers within {asked} even on an idle server"
    if building:
        return Unavailable(
            f"{impossible} ({figures}); {', '.join(building)} may, but is still being built; retry later",
            retry_after_seconds=_RETRY_WHILE_BUILDING_SECONDS,
        )
    return InvalidArgument(f"{impossible}; possible are: {figures}")


def milliseconds(seconds: float) -> str:
    """Return a duration for people."""
    amount = seconds * 1e3
    return f"{amount:.3g} ms" if amount < 100 else f"{amount:.0f} ms"


def _alone(candidate: Candidate) -> str:
    quality = "quality not measured" if candidate.quality is None else f"quality {candidate.quality:.4g}"
    return f"{candidate.tier} {milliseconds(candidate.forecast.alone_seconds)} ({quality})"
