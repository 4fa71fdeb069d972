from dataclasses import dataclass
from enum import StrEnum

from serveprune.models.instance import Instance
from serveprune.rollouts.side import Side


class RouteReason(StrEnum):
    """Why a request was served by the tier that served it."""

    REQUESTED = "requested"
    DEFAULT = "default"
    SPLIT = "split"
    CANARY = "canary"
    BUILDING = "building"
    REFUSED = "refused"
    FAILED = "failed"
    OBJECTIVE = "objective"
    ADAPTIVE = "adaptive"
    ADAPTIVE_LOAD = "adaptive_load"


@dataclass(slots=True)
class Route:
    """Where a request goes.

    Attributes:
        wanted: The tier asked for, or the deployment's default, or the best tier that might have been chosen.
        tier: The tier that serves.
        explanation: `reason` in words, for the answer.
        deadline_seconds: From the request's arrival until its answer is worthless, if it says so.
        target_seconds: From the request's arrival until its answer should be there, if the deployment says so.
        side: Of a rollout, which is to be told how the request ends.
    """

    instance: Instance
    wanted: str
    tier: str
    reason: RouteReason
    explanation: str
    deadline_seconds: float | None = None
    target_seconds: float | None = None
    side: Side | None = None
