"""What `serveprune plan` tells: JSON between the child that plans and whoever shows it. Imports no torch, no onnx."""

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

_MADE_UP = re.compile(r"(val|onnx::\w+?|const\w*?|tensor\w*?)?_*\d+(_copy\d+)?")
"""Names that torch's exporters and others give to weights they folded."""

_NODE = re.compile(r"((?:[\w.]+::)?\b[A-Z]\w*) \S+$")
"""An operator and, after it, the name of its node, at the end of a reason."""

_COUNTED = re.compile(r"[^:]:\d+$")
"""The end of the name of a second group on one weight."""


def without_node(reason: str) -> str:
    """Return why a weight is pinned without the node's name, so that those of one operator are one reason."""
    return _NODE.sub(r"\1", reason)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CoupledAxis(_Part):
    """An axis of a weight that loses positions together with the rest of its group."""

    weight: str
    axis: int
    positions_per_unit: int


def layer_label(name: str, coupled: Sequence[CoupledAxis]) -> str:
    """Return a layer's name for a group: that of its first weight whose name an exporter did not make up.

    Args:
        name: The group's.
        coupled: Its weights.
    """
    weight, colon, number = name.partition(":") if _COUNTED.search(name) else (name, "", "")
    names = [weight, *(piece.weight for piece in coupled)]
    given = next((each for each in names if not _MADE_UP.fullmatch(each)), weight)
    return f"{given.removesuffix('.weight').removesuffix('.bias')}{colon}{number}"


class PlannedGroup(_Part):
    """What happens to one group of units that can only go together."""

    name: str = Field(description="The first weight that makes the units.")
    label: str = Field(description="Name for people: the layer, where exporting has renamed that weight.")
    kind: str
    before: int = Field(description="Units.")
    after: int = Field(description="Units; 0 where the block around it goes as a whole.")
    error: float = Field(description="Predicted share of the answers' energy that is lost by this group alone.")
    saved_ms: float | None = Field(description="Predicted milliseconds saved by this group alone; null if not timed.")
    coupled: tuple[CoupledAxis, ...]


class PlannedBlock(_Part):
    """What happens to one residual block, which can go as a whole."""

    name: str = Field(description="The sum that ends it.")
    removed: bool
    error: float = Field(description="Share of the answers' energy that is lost without it.")
    groups: tuple[str, ...] = Field(description="Groups inside, which go with it.")


class WholeGroup(_Part):
    """A group that could lose units but may not, whatever the target."""

    name: str
    label: str
    kind: str
    width: int
    reason: str
    coupled: tuple[CoupledAxis, ...]


class PinnedWeight(_Part):
    """A weight axis that cannot get shorter without changing what the network computes."""

    weight: str
    axis: int
    width: int
    reason: str


class Prediction(_Part):
    """Cost of the whole model before and after; what groups save alone does not simply add up to it."""

    unit: str
    before: float
    after: float


class PlanReport(_Part):
    """What the first `prune` pass of a profile would do to a model."""

    model: str
    tier: str
    passes: tuple[str, ...] = Field(description="Names of the profile's passes.")
    planned_pass: int = Field(description="Place of the pass that is planned, from 1; later ones are not planned.")
    target: dict[str, float]
    structure: str
    importance: str
    batch_size: int
    threads: int = Field(description="Threads of one batch, with which latency is measured.")
    calibration_samples: int = Field(description="Samples that were learned from.")
    learned_from: str = Field(description="`calibration set`, or `synthetic inputs` where the profile asks for them.")
    predicted: Prediction
    error: float = Field(description="Sum over groups and removed blocks, which the plan keeps as small as it can.")
    groups: tuple[PlannedGroup, ...]
    blocks: tuple[PlannedBlock, ...]
    left_whole: tuple[WholeGroup, ...]
    pinned: tuple[PinnedWeight, ...]
    not_understood: tuple[str, ...] = Field(description="Operators without a rule; what they touch is kept whole.")
    warnings: tuple[str, ...] = Field(description="What the samples are not good for.")

    def pinned_by_reason(self) -> dict[str, list[PinnedWeight]]:
        """Return the pinned axes by reason, the most frequent first; nodes of one operator are one reason."""
        found: dict[str, list[PinnedWeight]] = {}
        for axis in self.pinned:
            found.setdefault(without_node(axis.reason), []).append(axis)
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))
