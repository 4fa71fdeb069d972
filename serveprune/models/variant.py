from dataclasses import dataclass
from enum import StrEnum

from serveprune.artifacts.builder import BuildProgress
from serveprune.artifacts.store import Artifact
from serveprune.config.model import DENSE
from serveprune.models.instance import Instance


class VariantState(StrEnum):
    """Where a variant is on its way to serving."""

    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self in (VariantState.READY, VariantState.REFUSED, VariantState.FAILED)


@dataclass(frozen=True, slots=True)
class Variant:
    """One tier of one model, as it stands; the registry replaces it whole when it changes.

    Attributes:
        reasons: Why the gate refused it or the build failed, one sentence each.
        log: The log a failed build left, relative to the store.
        backend: What runs it; the table of `backends.selection`.
        built_here: The artifact was built in this very environment, so its figures hold here.
        revision: Counts up when what the tier is to be changes, so that what is still done for the former is known.
    """

    tier: str
    state: VariantState = VariantState.WAITING
    artifact: Artifact | None = None
    instance: Instance | None = None
    reasons: tuple[str, ...] = ()
    progress: BuildProgress | None = None
    backend: str = "onnxruntime"
    built_here: bool = True
    log: str | None = None
    revision: int = 0

    @property
    def quality(self) -> float | None:
        """How far the tier's answers are those of dense, by its headline metric; ``None`` while that is not known.

        The headline metric is an agreement metric (top-1 agreement, cosine), so 1 is the quality of dense. It was
        measured at build on the evaluation set, and compares tiers of one model, never two models.
        """
        if self.tier == DENSE:
            return 1.0
        measurements = self.artifact.manifest.measurements if self.artifact else None
        return measurements.headline_quality if measurements else None
