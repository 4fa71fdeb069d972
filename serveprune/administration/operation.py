from enum import StrEnum


class AdminOperation(StrEnum):
    """What an operator may ask for; the names are those of the audit log and the metrics."""

    CONFIG = "config"
    RELOAD = "config.reload"
    ROLLOUTS = "rollouts"
    ROLLOUT = "rollout"
    CHANGES = "rollouts.changes"
    PAUSE = "rollout.pause"
    RESUME = "rollout.resume"
    PROMOTE = "rollout.promote"
    ABORT = "rollout.abort"

    @property
    def action(self) -> str:
        """What is done to a rollout, as `Rollouts.act` calls it."""
        return self.removeprefix("rollout.")


ACTS = (AdminOperation.PAUSE, AdminOperation.RESUME, AdminOperation.PROMOTE, AdminOperation.ABORT)
"""What moves a rollout."""

UNKNOWN = "unknown"
"""Shown by the metrics for what is none of them."""
