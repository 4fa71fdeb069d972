"""Where an axis is split: which of its parts can lose positions, found out by a first walk."""

from collections.abc import Iterable, Mapping

import numpy as np

from serveprune.compression.pruning.coupling.walk import AttentionPart, Carrier, Walk
from serveprune.compression.pruning.units import Ids


def choose_carriers(walk: Walk) -> Mapping[tuple[str, int], Carrier]:
    """Choose a part of every split axis.

    Of the parts that nothing pins, one that holds what was asked for (heads, or their dims), or else the other of
    the two, or else the longest: a channel shuffle's ``(groups, channels)`` loses the same channel of every group.

    Args:
        walk: A finished first walk, in which every part had units of its own.
    """
    seen = {part: _roots(walk, part) for part in ("heads", "head_dims")}
    wanted: tuple[AttentionPart, ...] = ("heads", "head_dims") if walk.attention == "heads" else ("head_dims", "heads")
    return {place: _choose(parts, walk, seen, wanted) for place, parts in walk.parts.items()}


def _choose(
    parts: list[tuple[int, Ids]], walk: Walk, seen: Mapping[str, Ids], wanted: Iterable[AttentionPart]
) -> Carrier:
    free = [(axis, ids) for axis, ids in parts if not walk.units.pinned(ids).any()]
    for part in wanted:
        for axis, ids in free:
            if np.isin(walk.units.roots(ids), seen[part]).any():
                return Carrier(axis, part)
    longest, _ = max(free or parts, key=lambda part: len(part[1]))
    return Carrier(longest, None)


def _roots(walk: Walk, part: str) -> Ids:
    found = [walk.units.roots(ids) for ids, held in walk.evidence if held == part]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
