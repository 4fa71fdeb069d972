"""From what a profile asks for to widths."""

import math
from collections.abc import Sequence

import numpy as np

from serveprune.artifacts.manifest import LatencyRecord
from serveprune.compression.pruning.allocation import Unreachable
from serveprune.compression.pruning.cost import CostModel
from serveprune.compression.pruning.coupled_allocation import (
    Candidates,
    Movable,
    WidthAllocation,
    allocate_widths,
    candidates_of,
)
from serveprune.compression.pruning.dependency_graph import PruningGroup
from serveprune.compression.pruning.latency_table import LatencyTable
from serveprune.config.pruning import PruneTarget
from serveprune.errors import InvalidArgument

LEAST_WIDTH = 4
"""Narrower layers leave the runtime's vector units idle."""

_MISSED_RATIO = 0.05
"""A model that misses its latency by more is worth another allocation, with what was measured."""


def candidate_widths(group: PruningGroup, *, round_to: int) -> tuple[int, ...]:
    """Return the widths a group may take, ascending, its whole width last.

    Channels and neurons stay multiples of ``round_to``, dims of heads multiples of 4; any number of heads may stay
    but none. A group that is narrower than that keeps its width.
    """
    match group.kind:
        case "heads":
            step, least = 1, 1
        case "head_dims":
            step, least = LEAST_WIDTH, LEAST_WIDTH
        case _:
            step, least = round_to, max(round_to, LEAST_WIDTH)
    narrower = (width for width in range(step, group.width, step) if width >= least)
    return (*narrower, group.width)


def allocate_target(movables: Sequence[Movable], *, target: PruneTarget, cost: CostModel) -> WidthAllocation:
    """Choose the widths that meet a target with the least error.

    Args:
        movables: Groups and blocks, with the errors of their widths.
        target: What is asked for.
        cost: What the target speaks of: the latency table for ``speedup`` and ``latency_ms``, the counted
            multiplications, parameters or bytes for their ratios; for ``ratio`` it is only reported.

    Raises:
        InvalidArgument: The target is out of reach, or dense meets it already. The message says what is possible.
    """
    if target.kind == "ratio":
        return _same_fraction(movables, fraction=target.value, cost=cost)
    if target.kind in ("speedup", "latency_ms") and not isinstance(cost, LatencyTable):
        raise TypeError(f"expected a latency table for the target {target.kind}, got {type(cost).__name__}")
    try:
        return allocate_widths(movables, cost=cost, budget=_budget(target, cost))
    except Unreachable as error:
        raise Unreachable(_possible(target, cost, error.least_cost), least_cost=error.least_cost) from error


def distance(latency: LatencyRecord, *, target: PruneTarget) -> float:
    """Return how far a measured latency is from a ``speedup`` or ``latency_ms``, relative to what that asks for."""
    return abs(latency.ratio / _wanted_ratio(latency, target) - 1)


def misses(latency: LatencyRecord, *, target: PruneTarget) -> bool:
    """Tell whether a measured latency is off target by more than 5 %, and by more than noise explains."""
    # About two standard errors of a median, from the distance between the 10th and the 90th percentile.
    uncertain = (latency.ratio_high - latency.ratio_low) / math.sqrt(latency.rounds)
    return distance(latency, target=target) > max(_MISSED_RATIO, uncertain / _wanted_ratio(latency, target))


def _wanted_ratio(latency: LatencyRecord, target: PruneTarget) -> float:
    return 1 / target.value if target.kind == "speedup" else target.value / latency.dense_ms


def _budget(target: PruneTarget, cost: CostModel) -> float:
    if not isinstance(cost, LatencyTable):
        return target.value * cost.total(cost.dense)
    milliseconds = cost.dense_ms / target.value if target.kind == "speedup" else target.value
    if milliseconds >= cost.dense_ms:
        raise InvalidArgument(
            f"asked {target.value:g} ms; the dense model takes {cost.dense_ms:.3g} ms already: expected a target "
            f"below that"
        )
    return cost.budget(milliseconds)


def _possible(target: PruneTarget, cost: CostModel, least_cost: float) -> str:
    if not isinstance(cost, LatencyTable):
        least = math.ceil(least_cost / cost.total(cost.dense) * 1000) / 1000
        return f"asked {target.kind} {target.value:g}; the prunable part allows {least:g} at least"
    least_ms = max(cost.milliseconds(least_cost), 1e-6)
    if target.kind == "speedup":
        most = math.floor(cost.dense_ms / least_ms * 100) / 100
        return f"asked {target.value:g}x; the prunable part allows {most:g}x at most"
    return f"asked {target.value:g} ms; the prunable part allows {least_ms:.3g} ms at least"


def _same_fraction(movables: Sequence[Movable], *, fraction: float, cost: CostModel) -> WidthAllocation:
    widths = cost.dense.copy()
    error = 0.0
    for found in candidates_of(movables):
        nearest = _nearest(found, fraction)
        widths[found.group] = found.widths[nearest]
        error += float(found.errors[nearest])
    return WidthAllocation(widths, frozenset(), cost.total(widths), error)


def _nearest(found: Candidates, fraction: float) -> int:
    return int(np.abs(found.widths - fraction * found.widths[-1]).argmin())
