"""Show how often a guard ends a rollout by mistake, and how long it takes to end one rightly.

    python tests/benchmarks/guards.py [--limit 0.01] [--seconds 1800] [--runs 2000]

The guard `max_error_ratio`, judged every second over a window of ten minutes with the default 200 samples; failures
are independent of each other. Nothing is measured: requests are drawn, and judged by the tests that serve. The
99th percentile is the same test with a limit of 0.01.
"""

import argparse
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from serveprune.rollouts.confidence_bounds import wilson_lower

_WINDOW_SECONDS = 600
_MIN_SAMPLES = 200
_CONFIDENCES = (0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class _Setting:
    limit: float
    seconds: int
    runs: int


@cache
def _fewest_errors(requests: int, limit: float, confidence: float) -> int:
    """Return with how many failed requests the limit is known to be broken; one more than there are if with none."""
    low, high = 0, requests + 1
    while low < high:
        middle = (low + high) // 2
        if wilson_lower(middle, requests, confidence=confidence) > limit:
            high = middle
        else:
            low = middle + 1
    return low


def _aborted_at(
    setting: _Setting, *, requests_per_second: int, error_ratio: float, confidence: float
) -> NDArray[np.float64]:
    """Return when the guard ended each run, in seconds, ``(runs,)``; infinite where it did not."""
    random = np.random.default_rng(0)
    requests = random.poisson(requests_per_second, (setting.runs, setting.seconds))
    errors = random.binomial(requests, error_ratio)
    seen, failed = _in_window(requests), _in_window(errors)
    most = int(seen.max())
    fewest = np.array([_fewest_errors(n, setting.limit, confidence) if n else 1 for n in range(most + 1)])
    breaches = (failed >= fewest[seen]) & (seen >= _MIN_SAMPLES)
    return np.where(breaches.any(axis=1), breaches.argmax(axis=1) + 1.0, np.inf)


def _in_window(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum ``(runs, seconds)`` over the window that ends at each second."""
    sums: NDArray[np.int64] = counts.cumsum(axis=1)
    sums[:, _WINDOW_SECONDS:] -= counts.cumsum(axis=1)[:, :-_WINDOW_SECONDS]
    return sums


def _printed(setting: _Setting, factors: tuple[float, ...], *, times: bool) -> None:
    heads = [f"{100 * confidence:g} %" for confidence in _CONFIDENCES]
    print(f"| error ratio / limit | requests/s | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * len(heads))
    for factor in factors:
        for rate in (1, 10):
            cells = []
            for confidence in _CONFIDENCES:
                ended = _aborted_at(
                    setting, requests_per_second=rate, error_ratio=factor * setting.limit, confidence=confidence
                )
                share = f"{100 * np.isfinite(ended).mean():.3g} %"
                median = np.median(ended)
                cells.append((f"{median:.0f} s" if np.isfinite(median) else f"({share})") if times else share)
            print(f"| {factor:g} | {rate} | {' | '.join(cells)} |")
    print()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=0.01)
    parser.add_argument("--seconds", type=int, default=1800, help="of each rollout")
    parser.add_argument("--runs", type=int, default=2000)
    arguments = parser.parse_args()
    setting = _Setting(arguments.limit, arguments.seconds, arguments.runs)
    print(f"Rollouts of {setting.seconds} s that were ended by mistake, limit {setting.limit:g}\n")
    _printed(setting, (1.0, 0.75, 0.5, 0.25), times=False)
    print("Median time to the end (or the share that was ended, if that is less than half)\n")
    _printed(setting, (1.5, 2.0, 3.0, 5.0), times=True)


if __name__ == "__main__":
    main()
