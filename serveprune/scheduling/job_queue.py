from collections import OrderedDict

from serveprune.scheduling.batch_policy import select_batch
from serveprune.scheduling.job import Executable, Job, Signature

_Lane = tuple[Executable, Signature]


class JobQueue:
    """Waiting jobs in order of arrival; what leaves costs no more than itself. Not thread-safe."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        # Only jobs of one lane can share a run, so that the others need not be looked at to form a batch.
        self._lanes: dict[_Lane, OrderedDict[Job, None]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def append(self, job: Job) -> None:
        """Add a job at the end."""
        self._jobs[job] = None
        self._lanes.setdefault(_lane(job), OrderedDict())[job] = None

    def discard(self, job: Job) -> None:
        """Forget a job, if it still waits."""
        if job not in self._jobs:
            return
        del self._jobs[job]
        lane = self._lanes[_lane(job)]
        del lane[job]
        if not lane:
            del self._lanes[_lane(job)]

    def take_batch(self) -> list[Job]:
        """Remove and return the jobs to run next: the oldest, and those that fit with it; there must be one."""
        batch = select_batch(self._lanes[_lane(next(iter(self._jobs)))])
        for job in batch:
            self.discard(job)
        return batch

    def take_all(self) -> list[Job]:
        """Remove and return everything."""
        jobs = list(self._jobs)
        self._jobs.clear()
        self._lanes.clear()
        return jobs


def _lane(job: Job) -> _Lane:
    return job.executable, job.signature
