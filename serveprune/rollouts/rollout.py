from dataclasses import dataclass
from enum import StrEnum

FULL_PERCENT = 100


class Phase(StrEnum):
    """How a rollout stands."""

    WAITING = "waiting"
    """The canary is not ready: it gets nothing, and no time passes."""
    PROGRESSING = "progressing"
    PAUSED = "paused"
    """By an operator, or by a step that waits for one."""
    PROMOTED = "promoted"
    """The canary gets everything; guards no longer judge."""
    ABORTED = "aborted"
    """The canary gets nothing, until the config changes."""

    @property
    def is_final(self) -> bool:
        """Whether no step follows any more."""
        return self in (Phase.PROMOTED, Phase.ABORTED)


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where one canary has got to. What it means for requests says `RolloutPolicy.weights`.

    Attributes:
        identity: Of what is rolled out; see `rollout_identity`.
        phase: How it stands.
        step: Index of the step that is under way; as many as there are steps when all are done.
        step_seconds: How long that step has been under way; only time in which the canary was ready and no operator
            had paused the rollout.
        is_released: An operator has ended the wait of a step that waits for one.
        held_by: The operator who paused the rollout.
        reason: Why it stands as it does, in words.
        figures: What guards went by the last time, in words.
        who: The operator whose word brought it where it is; ``None``: steps, guards or readiness did.
        is_ready: The canary could serve at the last event. Not stored: after a restart nothing is ready yet.
        at: Moment of the last event, in seconds of the clock that events bring. Not stored: clocks start anew.
    """

    identity: str
    phase: Phase = Phase.WAITING
    step: int = 0
    step_seconds: float = 0.0
    is_released: bool = False
    held_by: str | None = None
    reason: str = ""
    figures: str = ""
    who: str | None = None
    is_ready: bool = False
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """How requests that name no tier are spread, in percent; both together are 100."""

    canary_percent: int

    @property
    def stable_percent(self) -> int:
        """What the canary does not get."""
        return FULL_PERCENT - self.canary_percent


class ChangeKind(StrEnum):
    """What happened to a rollout."""

    CANARY_READY = "canary_ready"
    CANARY_NOT_READY = "canary_not_ready"
    STEP = "step"
    """A step has begun: a weight is set, or a pause."""
    PAUSED = "paused"
    RESUMED = "resumed"
    PROMOTED = "promoted"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the audit log.

    Attributes:
        kind: What happened.
        at: When, in seconds of the clock that events bring.
        text: What happened, in words, with the figures that led to it.
        canary_percent: What the canary gets from now on.
        who: The operator who did it, if it was one.
    """

    kind: ChangeKind
    at: float
    text: str
    canary_percent: int
    who: str | None = None
