from dataclasses import dataclass
from typing import Protocol

from serveprune.scheduling.job import Executable


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a request would be answered if it were queued now, in seconds.

    Attributes:
        wait_seconds: Until an executor takes it.
        compute_seconds: Of the batch it would then be part of.
        alone_seconds: Of its own rows alone: what it would take if nobody else were there.
    """

    wait_seconds: float
    compute_seconds: float
    alone_seconds: float

    @property
    def finish_seconds(self) -> float:
        """From now to the answer."""
        return self.wait_seconds + self.compute_seconds


class Forecaster(Protocol):
    """Tells how long variants would take now; `Scheduler` does."""

    def forecast(self, executable: Executable, *, rows: int, length: int) -> Forecast:
        """Return when a request would be answered.

        Args:
            executable: The loaded variant.
            rows: Of the request.
            length: Of each row, as `Job.length` counts it.
        """
        ...
