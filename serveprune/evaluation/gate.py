from serveprune.artifacts.manifest import Measurements
from serveprune.config.profile import GateConfig
from serveprune.evaluation.quality import FINITE_FRACTION

FASTER_RATIO = 0.98
"""A median latency ratio below this is faster; nearer to 1 it is within what repeated timings differ by."""

SMALLER_RATIO = 0.98
"""A tier below this fraction of dense's bytes is smaller; nearer to 1 only names and metadata have changed."""


def judge(measurements: Measurements, gate: GateConfig) -> tuple[str, ...]:
    """Return why an artifact may not serve, one sentence each; empty if it may.

    Bounds are inclusive: a value equal to its bound passes. Whatever the gate says, a tier is refused that gives
    NaN or infinity, or that is neither faster (`FASTER_RATIO`) nor smaller (`SMALLER_RATIO`) than dense.
    """
    reasons = []
    finite = measurements.quality.get(FINITE_FRACTION, 1.0)
    if finite < 1:
        broken = round((1 - finite) * measurements.samples)
        reasons.append(f"{broken} of {measurements.samples} samples are answered with NaN or infinity")
    quality, latency = measurements.headline_quality, measurements.latency
    if gate.min_quality is not None and quality < gate.min_quality:
        reasons.append(
            f"{measurements.metric} {_against(quality, gate.min_quality)} is below the gate's min_quality "
            f"{gate.min_quality:g}"
        )
    if gate.max_latency_ratio is not None and latency.ratio > gate.max_latency_ratio:
        reasons.append(
            f"latency ratio {_against(latency.ratio, gate.max_latency_ratio)} ({latency.tier_ms:.3g} ms, dense "
            f"{latency.dense_ms:.3g} ms) is above the gate's max_latency_ratio {gate.max_latency_ratio:g}"
        )
    deviation = measurements.batch_deviation
    if gate.max_batch_deviation is not None and deviation > gate.max_batch_deviation:
        reasons.append(
            f"batch deviation {_against(deviation, gate.max_batch_deviation)} is above the gate's "
            f"max_batch_deviation {gate.max_batch_deviation:g}"
        )
    size_ratio = measurements.tier_bytes / max(measurements.dense_bytes, 1)
    if latency.ratio >= FASTER_RATIO and size_ratio >= SMALLER_RATIO:
        reasons.append(
            f"it is neither faster (latency ratio {latency.ratio:.3f}, expected below {FASTER_RATIO:g}) nor smaller "
            f"(size ratio {size_ratio:.3f}, expected below {SMALLER_RATIO:g}) than dense"
        )
    return tuple(reasons)


def _against(value: float, bound: float) -> str:
    """Return the value with as few digits, from 3, as tell it from the bound."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if text != f"{bound:.{digits}g}":
            return text
    return repr(value)
