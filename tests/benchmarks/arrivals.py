"""When requests arrive in an open loop: nobody waits for the answer of the last one before sending the next."""

import math
from collections.abc import Callable

import numpy as np

Rate = Callable[[float], float]
"""Requests a second at a moment, in seconds from the start."""


def constant(capacity: float) -> Rate:
    """Arrive at six tenths of a capacity, in requests a second."""
    return lambda moment: 0.6 * capacity


def diurnal(capacity: float, *, period_seconds: float) -> Rate:
    """Swing once a period between a fifth of a capacity and twice it."""
    return lambda moment: capacity * (1.1 - 0.9 * math.cos(2 * math.pi * moment / period_seconds))


def spikes(capacity: float, *, every_seconds: float, lasting_seconds: float) -> Rate:
    """Arrive at half of a capacity, and at three times it for a while in every period."""
    return lambda moment: capacity * (3.0 if moment % every_seconds >= every_seconds - lasting_seconds else 0.5)


def arrivals(rate: Rate, *, seconds: float, seed: int) -> list[float]:
    """Draw the moments of a Poisson process of varying rate, by thinning (Lewis and Shedler, 1979)."""
    random = np.random.default_rng(seed)
    highest = max(rate(moment) for moment in np.linspace(0, seconds, 1000, endpoint=False))
    moments, moment = [], 0.0
    while (moment := moment + random.exponential(1 / highest)) < seconds:
        if random.uniform() * highest < rate(moment):
            moments.append(moment)
    return moments
