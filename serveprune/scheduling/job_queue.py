import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import islice

from serveprune.scheduling.batch_policy import BatchLimits, rows_for_batch, select_batch
from serveprune.scheduling.fair_share import FairShare
from serveprune.scheduling.job import Executable, Job, Signature

_Entry = tuple[float, int, Job]
"""When it is due, its number (which decides between equals, and no two are equal), and the job."""

QUICK_SECONDS = 0.0003
"""Work that is not worth waking an executor for."""


def is_quick(job: Job) -> bool:
    """Tell whether a job, whose place is set, takes next to nothing by itself, for certain."""
    executable = job.executable
    return (
        executable.fixed_work
        and not executable.max_queue_delay_seconds
        # Where nothing was measured, nothing says that it is quick.
        and 0.0 < job.alone_seconds <= QUICK_SECONDS
    )


@dataclass(slots=True)
class _Lane:
    """The jobs that may share a run, the most urgent first."""

    executable: Executable
    entries: list[_Entry] = field(default_factory=list)
    rows: int = 0

    def add(self, entry: _Entry) -> None:
        insort(self.entries, entry)
        self.rows += entry[2].rows

    def remove(self, entry: _Entry) -> None:
        del self.entries[bisect_left(self.entries, entry)]
        self.rows -= entry[2].rows

    @property
    def head(self) -> _Entry:
        return self.entries[0]

    def ripe_at(self) -> float:
        """Return when the first batch has had its time to fill: at once if it is full.

        It leaves when the one that came first has waited as long as it may, whoever is more urgent, and soon enough
        for all to be in time.
        """
        executable, length = self.executable, max(job.length for _, _, job in self.entries)
        if self.rows >= min(executable.max_batch_size, executable.latency.worthwhile_rows(length)):
            return 0.0
        first = min(job.enqueued for _, _, job in self.entries)
        wanted = min(job.target for _, _, job in self.entries)
        seconds = executable.latency.safe_seconds(self.rows, length)
        return min(first + executable.max_queue_delay_seconds, wanted - seconds)


@dataclass(frozen=True, slots=True)
class Taken:
    """What left the queue to be computed, and what it was not worth computing.

    Attributes:
        batch: To run together; empty if there is nothing to run now.
        expired: Their deadline has passed.
        hopeless: Their deadline would pass while they are computed, and others are waiting.
        seconds: What the batch is expected to take.
        ripe_at: Without a batch, when there will be one; ``inf`` if nothing waits.
    """

    batch: list[Job]
    expired: list[Job]
    hopeless: list[Job]
    seconds: float
    ripe_at: float


class JobQueue:
    """Jobs that wait, in lanes that may share a run; most urgent first, models by their share. Not thread-safe."""

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._entries: dict[Job, _Entry] = {}
        self._lanes: dict[str, dict[tuple[Executable, Signature], _Lane]] = {}
        self._arrivals = 0
        self._rows = 0
        self._seconds: dict[str, float] = {}
        self._rows_of: dict[Executable, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, job: Job) -> None:
        """Add a job whose place in the order is set."""
        model = job.executable.identity[0]
        if model not in self._lanes:
            self._share.enter(model, others=self._lanes)
            self._lanes[model], self._seconds[model] = {}, 0.0
        self._arrivals += 1
        entry = self._entries[job] = (job.due, self._arrivals, job)
        lanes, key = self._lanes[model], (job.executable, job.signature)
        if key not in lanes:
            lanes[key] = _Lane(job.executable)
        lanes[key].add(entry)
        self._rows += job.rows
        self._seconds[model] += job.cost_seconds
        self._rows_of[job.executable] = self._rows_of.get(job.executable, 0) + job.rows

    def discard(self, job: Job) -> bool:
        """Forget a job; return whether it was still waiting."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return False
        model, key = job.executable.identity[0], (job.executable, job.signature)
        lanes = self._lanes[model]
        lanes[key].remove(entry)
        if not lanes[key].entries:
            del lanes[key]
        self._rows -= job.rows
        self._seconds[model] -= job.cost_seconds
        self._rows_of[job.executable] -= job.rows
        if not self._rows_of[job.executable]:
            del self._rows_of[job.executable]
        if not lanes:
            del self._lanes[model], self._seconds[model]
        return True

    def rows_waiting(self, executable: Executable) -> int:
        """Return the rows that wait for one variant."""
        return self._rows_of.get(executable, 0)

    def seconds_ahead(self, model: str) -> float:
        """Return the compute time that one more job of a model would have to wait for, all executors together."""
        return self._share.seconds_ahead(model, self._seconds)

    def take(self, *, now: float, running_rows: int, executors: int, waits_for_more: bool = True) -> Taken:
        """Remove and return what is to be run next, and what it is too late for.

        Args:
            now: On the clock of the jobs.
            running_rows: Being computed at the moment.
            executors: That there are in all.
            waits_for_more: Whether batches are given the time to fill that their deployments ask for.
        """
        return self._take(now, running_rows=running_rows, executors=executors, waits_for_more=waits_for_more)

    def take_quick(self, *, now: float) -> Taken:
        """Remove and return what is to be run next if it is quick, and no more than is; see `take`."""
        return self._take(now, only_quick=True)

    def take_directly(self, jobs: list[Job], *, now: float) -> Taken | None:
        """Return what `take_quick` would return if these were appended to the queue, which is empty.

        Returns:
            All of them as one batch; ``None`` if they would be anything else.
        """
        head, rows, target = jobs[0], 0, math.inf
        executable, latency = head.executable, head.executable.latency
        for job in jobs:
            if job.executable is not executable or job.length != head.length or job.signature != head.signature:
                return None
            if now + job.alone_seconds > job.deadline:
                return None
            rows += job.rows
            target = min(target, job.target)
        if len(jobs) > 1:
            elements = executable.max_batch_elements
            if not executable.batchable or rows > self._most_rows(head) or (elements and rows * head.length > elements):
                return None
        seconds = latency.expected_seconds(rows, head.length)
        if now + seconds > target:
            return None
        model = executable.identity[0]
        self._share.enter(model, others=())
        self._share.charge(model, seconds)
        return Taken(jobs, [], [], seconds, now)

    def _take(
        self,
        now: float,
        *,
        running_rows: int = 0,
        executors: int = 1,
        waits_for_more: bool = True,
        only_quick: bool = False,
    ) -> Taken:
        expired: list[Job] = []
        hopeless: list[Job] = []
        while self._entries:
            lane, ripe_at = self._choose(now, waits_for_more=waits_for_more)
            if lane is None or (only_quick and not is_quick(lane.head[2])):
                return Taken([], expired, hopeless, 0.0, ripe_at)
            job = lane.head[2]
            if now > job.deadline:
                expired.append(job)
            elif now + job.alone_seconds > job.deadline and len(self._entries) > 1:
                # Alone in the queue it costs nobody anything, and shows whether the forecast is right.
                hopeless.append(job)
            else:
                for late in self._companions_too_late(lane, now):
                    (expired if now > late.deadline else hopeless).append(late)
                    self.discard(late)
                # Quick batches are not divided.
                present_rows = 0 if only_quick else self._rows + running_rows
                batch, seconds = self._take_from(lane, now, present_rows, executors)
                return Taken(batch, expired, hopeless, seconds, now)
            self.discard(job)
        return Taken([], expired, hopeless, 0.0, float("inf"))

    def take_all(self) -> list[Job]:
        """Remove and return everything."""
        jobs = list(self._entries)
        for job in jobs:
            self.discard(job)
        return jobs

    def _choose(self, now: float, *, waits_for_more: bool) -> tuple[_Lane | None, float]:
        """Return the lane to serve, or when one will be ripe."""
        ripe: dict[str, _Lane] = {}
        soonest = float("inf")
        for model, lanes in self._lanes.items():
            for lane in lanes.values():
                if waits_for_more and lane.executable.max_queue_delay_seconds and (ripe_at := lane.ripe_at()) > now:
                    soonest = min(soonest, ripe_at)
                elif model not in ripe or lane.head < ripe[model].head:
                    ripe[model] = lane
        if not ripe:
            return None, soonest
        models = self._share.eligible(ripe) if len(ripe) > 1 else list(ripe)
        return min((ripe[model] for model in models), key=lambda lane: lane.head), now

    def _companions_too_late(self, lane: _Lane, now: float) -> list[Job]:
        """Return whom its batch would be computed for in vain."""
        executable = lane.executable
        if not executable.batchable or len(lane.entries) == 1:
            return []
        nearest = islice(lane.entries, 1, BatchLimits(executable.max_batch_size).candidates)
        return [job for _, _, job in nearest if now + job.alone_seconds > job.deadline]

    def _most_rows(self, head: Job, *, present_rows: int = 0, executors: int = 1) -> int:
        """Return how many rows the batch of the most urgent job should have at the most."""
        latency = head.executable.latency
        return rows_for_batch(
            present_rows=present_rows,
            executors=executors,
            quick_rows=latency.table.quick_rows(head.length, seconds=QUICK_SECONDS),
            worthwhile_rows=latency.worthwhile_rows(head.length),
            max_rows=head.executable.max_batch_size,
        )

    def _take_from(self, lane: _Lane, now: float, present_rows: int, executors: int) -> tuple[list[Job], float]:
        executable, latency = lane.executable, lane.executable.latency
        head = lane.head[2]
        batch = [head]
        if executable.batchable and len(lane.entries) > 1:
            # Batches that had time to fill are not divided again.
            executors = 1 if executable.max_queue_delay_seconds else executors
            rows = self._most_rows(head, present_rows=present_rows, executors=executors)
            limits = BatchLimits(rows, executable.max_batch_elements)
            waiting = [job for _, _, job in lane.entries[: limits.candidates]]
            batch = select_batch(waiting, limits=limits, seconds=latency.estimate(), now=now)
        for job in batch:
            self.discard(job)
        seconds = latency.expected_seconds(sum(job.rows for job in batch), max(job.length for job in batch))
        self._share.charge(head.executable.identity[0], seconds)
        return batch, seconds
