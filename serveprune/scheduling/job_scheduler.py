from collections.abc import Callable, Mapping
from typing import Protocol

from serveprune.scheduling.forecast import Forecast
from serveprune.scheduling.job import Executable, Job


class JobScheduler(Protocol):
    """What the data plane needs of whoever runs its jobs; `Scheduler` is one for variants of this process.

    Attributes:
        after_batch: Called when all jobs of a batch have been told their answers, in the thread that told them.
    """

    after_batch: Callable[[], None]

    @property
    def is_calm(self) -> bool:
        """See `Scheduler.is_calm`."""
        ...

    def share_out(self, shares: Mapping[str, float]) -> None:
        """See `Scheduler.share_out`."""
        ...

    def submit(self, job: Job, *, more: bool = False, before_queued: Callable[[], None] = lambda: None) -> None:
        """See `Scheduler.submit`."""
        ...

    def proceed(self) -> None:
        """See `Scheduler.proceed`."""
        ...

    def abandon(self, job: Job) -> None:
        """See `Scheduler.abandon`."""
        ...

    def forecast(self, executable: Executable, *, rows: int, length: int) -> Forecast:
        """See `Forecaster.forecast`."""
        ...

    def stop(self, *, drain_seconds: float) -> bool:
        """See `Scheduler.stop`."""
        ...
