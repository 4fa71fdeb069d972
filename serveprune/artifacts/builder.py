from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Event
from typing import Any, Protocol, Self

from pydantic import BaseModel, ConfigDict

from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.config.root import ServePruneConfig


class BuildRequest(BaseModel):
    """One artifact to make: the dense graph of a model, or a tier of it. JSON goes to the child process.

    Attributes:
        content: What the model's files were like, where they may change under their names; else nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str
    model: ModelConfig
    tier: str = DENSE
    profile: ProfileConfig | None = None
    content: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether this asks for the imported graph itself."""
        return self.profile is None

    def for_dense(self) -> Self:
        """Return what asks for the graph that this tier is made from."""
        return self.model_copy(update={"tier": DENSE, "profile": None})

    def is_wanted_by(self, config: ServePruneConfig, *, contents: Mapping[tuple[str, str], str]) -> bool:
        """Tell whether a server with this config, and contents by name and version, would ask for the same."""
        entry = config.models.get(self.model_name)
        model = entry.served.get(self.model.version) if entry is not None else None
        return (
            model is not None
            and contents.get((self.model_name, self.model.version), "") == self.content
            and self.tier in model.tiers
            and model.of_all_tiers == self.model.of_all_tiers
            and config.profile(self.tier) == self.profile
        )


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Where a build is; ``fraction`` runs from 0 to 1 over the whole build."""

    stage: str
    fraction: float
    message: str = ""


class BuildOutcome(StrEnum):
    """How a build ended."""

    BUILT = "built"
    CACHED = "cached"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The end of a build.

    Attributes:
        key: The artifact's key, unless the build failed.
        reasons: Why the gate refused it or the build failed, one sentence each.
        bad_input: The build failed because of what it was given, so a retry with the same input is useless.
        log: The child's full output, kept when the build failed.
        findings: JSON-ready, from a worker that was asked for an answer rather than for an artifact.
        is_anothers: Another process made it, and counts it.
    """

    outcome: BuildOutcome
    key: str | None = None
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    bad_input: bool = False
    log: Path | None = None
    findings: Mapping[str, Any] | None = None
    is_anothers: bool = False


class ArtifactBuilder(Protocol):
    """The seam between the two halves: the serving half asks, the compressing half makes."""

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """Make the artifact, or find it in the store, and return how that ended; blocks the calling thread.

        Never raises for a build that went wrong: that is a `BuildResult` with outcome FAILED.
        Setting ``cancelled`` ends the build soon, as FAILED.
        """
        ...
