import time
from collections.abc import Callable, Mapping

from serveprune.handlers.ray_serve.packing import Identity
from serveprune.scheduling.forecast import Forecast
from serveprune.scheduling.job import Executable, Job
from serveprune.scheduling.scheduler import Drop, Scheduler


class Schedulers:
    """A scheduler for each deployment of tiers, seen as one; see `Scheduler`. Thread-safe.

    Its executors are batches on the way to replicas. Requests wait here, where they have their order, deadlines and
    batches, rather than in a replica that may be the wrong one by the time it is free.
    """

    def __init__(
        self,
        in_flight: Mapping[str, int],
        deployments: Mapping[Identity, str],
        *,
        on_batch: Callable[[Executable, int], None],
        on_drop: Callable[[Executable, Drop], None],
    ) -> None:
        """Start them.

        Args:
            in_flight: Deployment -> batches that may be on their way at once.
            deployments: Of each variant.
            on_batch: See `Scheduler`.
            on_drop: See `Scheduler`.
        """
        self._deployments = deployments
        self._schedulers = {
            name: Scheduler(executors=count, computes_here=False, on_batch=on_batch, on_drop=on_drop)
            for name, count in in_flight.items()
        }

    @property
    def after_batch(self) -> Callable[[], None]:
        """See `Scheduler`."""
        return next(iter(self._schedulers.values())).after_batch

    @after_batch.setter
    def after_batch(self, listener: Callable[[], None]) -> None:
        for each in self._schedulers.values():
            each.after_batch = listener

    @property
    def is_calm(self) -> bool:
        """Whether nothing waits for any deployment, and all could take a batch."""
        return all(each.is_calm for each in self._schedulers.values())

    def share_out(self, shares: Mapping[str, float]) -> None:
        """See `Scheduler.share_out`; models compete within a deployment."""
        for each in self._schedulers.values():
            each.share_out(shares)

    def submit(self, job: Job, *, more: bool = False, before_queued: Callable[[], None] = lambda: None) -> None:
        """See `Scheduler.submit`."""
        self._of(job.executable).submit(job, more=more, before_queued=before_queued)

    def proceed(self) -> None:
        """See `Scheduler.proceed`."""
        for each in self._schedulers.values():
            each.proceed()

    def abandon(self, job: Job) -> None:
        """See `Scheduler.abandon`."""
        self._of(job.executable).abandon(job)

    def forecast(self, executable: Executable, *, rows: int, length: int) -> Forecast:
        """See `Forecaster.forecast`."""
        return self._of(executable).forecast(executable, rows=rows, length=length)

    def stop(self, *, drain_seconds: float) -> bool:
        """See `Scheduler.stop`; all stop within the same time."""
        deadline = time.monotonic() + drain_seconds
        stopped = [each.stop(drain_seconds=max(0.0, deadline - time.monotonic())) for each in self._schedulers.values()]
        return all(stopped)

    def _of(self, executable: Executable) -> Scheduler:
        return self._schedulers[self._deployments[executable.identity]]
