"""What pruning would do, before anything is cut."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What happens to one group.

    Attributes:
        before, after: Units.
        error: Predicted share of the answers' energy that is lost by it.
        saved_ms: Predicted milliseconds saved by it alone; ``None`` where no latency was measured.
        removed: Unit ids that go.
    """

    name: str
    kind: str
    before: int
    after: int
    error: float
    saved_ms: float | None
    removed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Widths that meet the target, before anything is cut.

    Attributes:
        groups: One entry per group that may lose units.
        removed_blocks: Names of the residual blocks that go as a whole.
        pinned: Why weights stay whole: reason -> number of axes.
        unknown_operators: Operators that were not understood, and kept what they touch whole.
        predicted: The cost model's view: before, after, unit.
    """

    groups: tuple[GroupPlan, ...]
    removed_blocks: tuple[str, ...]
    pinned: Mapping[str, int]
    unknown_operators: tuple[str, ...]
    predicted: Mapping[str, Any]

    @property
    def removed(self) -> tuple[int, ...]:
        """All unit ids that go, but for those of blocks that go as a whole."""
        return tuple(unit for group in self.groups if group.after for unit in group.removed)


def describe(plan: Plan) -> dict[str, Any]:
    """Return a plan, ready for JSON."""
    return {
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "before": group.before,
                "after": group.after,
                "error": group.error,
                "saved_ms": group.saved_ms,
            }
            for group in plan.groups
        ],
        "removed_blocks": list(plan.removed_blocks),
        "kept_whole": dict(plan.pinned),
        "not_understood": list(plan.unknown_operators),
        "predicted": dict(plan.predicted),
    }
