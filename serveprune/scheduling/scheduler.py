import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, ServePruneError, Unavailable
from serveprune.oip.tensor import Array
from serveprune.scheduling.backlog import seconds_until_free
from serveprune.scheduling.collate import collate, split
from serveprune.scheduling.fair_share import FairShare
from serveprune.scheduling.forecast import Forecast
from serveprune.scheduling.job import Executable, Job, JobResult
from serveprune.scheduling.job_queue import QUICK_SECONDS, JobQueue, Taken, is_quick
from serveprune.scheduling.parts import parts_of, place, rows_per_part

_log = logging.getLogger(__name__)

_OVERRUN = 0.1
"""A batch that takes longer than expected is taken to need this part of its time still."""


_HERE_SECONDS = 0.001
"""Who submits computes for no longer than this, for a front end that computes serves nobody meanwhile."""


class Drop(StrEnum):
    """Why a job was not computed."""

    EXPIRED = "expired"
    HOPELESS = "hopeless"


class _Executor:
    """What one executor thread is at; written by it, read by forecasts."""

    __slots__ = ("free_at", "model", "rows", "seconds", "started")

    def __init__(self) -> None:
        self.rows, self.seconds, self.started, self.free_at, self.model = 0, 0.0, 0.0, 0.0, ""

    def take(self, batch: Sequence[Job], *, seconds: float, now: float) -> None:
        self.rows, self.model = sum(job.rows for job in batch), batch[0].executable.identity[0]
        self.seconds, self.started, self.free_at = seconds, now, now + seconds

    def busy_seconds(self, now: float) -> float:
        return max(self.free_at - now, _OVERRUN * self.seconds) if self.rows else 0.0

    def is_nearly_free(self, now: float) -> bool:
        # Where nothing was measured, nothing says that it is quick.
        return bool(self.rows) and 0.0 < self.seconds < QUICK_SECONDS and abs(self.free_at - now) < QUICK_SECONDS


class _Round(threading.local):
    """What a thread has submitted since it last proceeded, all of it quick."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []


class Scheduler:
    """Runs jobs of all variants on a bounded set of executor threads. Thread-safe.

    Work-conserving: a free executor takes at once what waits, as one batch where it fits; nothing waits for a timer
    unless its deployment asks for it. What is quick is computed where it is submitted, in the place of an idle
    executor: to hand it over and the answers back takes longer. Which jobs is decided by `JobQueue`: by deadline,
    with ageing and priority, each model getting its share. Jobs whose caller is gone are forgotten at once; those
    whose deadline has passed, or would pass while they are computed, are dropped before compute. A job larger than
    its variant's batch limit is computed in parts, which others may come between. The jobs of a batch that fails are
    run one by one, so that each fails or succeeds for itself.

    Attributes:
        after_batch: Called when all jobs of a batch have been told their answers, in the thread that told them.
    """

    def __init__(
        self,
        *,
        executors: int,
        computes_here: bool = True,
        on_batch: Callable[[Executable, int], None] = lambda executable, rows: None,
        on_drop: Callable[[Executable, Drop], None] = lambda executable, reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the executors.

        Args:
            executors: Batches computed at the same time, at the most.
            computes_here: What is quick may be computed by whoever submits it; not where a run waits for a
                process.
            on_batch: Called with the variant and the number of rows after each computed batch.
            on_drop: Called with the variant and the reason when a job is dropped.
            clock: Monotonic seconds; deadlines of jobs are on it.
        """
        self._clock = clock
        self._computes_here = computes_here
        self._on_batch = on_batch
        self._on_drop = on_drop
        self.after_batch: Callable[[], None] = lambda: None
        self._share = FairShare()
        self._waiting = JobQueue(self._share)
        self._changed = threading.Condition(threading.Lock())
        self._idle = self._computing_here = 0
        self._waking = False
        self._stopping = False
        self._round = _Round()
        self._executors = [_Executor() for _ in range(executors)]
        self._threads = [
            threading.Thread(target=self._execute, args=(executor,), name=f"executor-{index}", daemon=True)
            for index, executor in enumerate(self._executors)
        ]
        for thread in self._threads:
            thread.start()

    def share_out(self, shares: Mapping[str, float]) -> None:
        """Divide compute time otherwise from now on.

        Args:
            shares: Model -> its weight when models compete for executors; 1 where it is not named.
        """
        with self._changed:
            self._share.reweigh(shares)

    def submit(self, job: Job, *, more: bool = False, before_queued: Callable[[], None] = lambda: None) -> None:
        """Queue a job, and compute it here if it is quick and an executor idles.

        Its ``done`` is called from an executor thread, from the one that abandons it, or from one that submits.

        Args:
            job: See `Job`.
            more: Others follow at once, which may share its run; the last one is followed by `proceed`.
            before_queued: Called before other threads may compute it, unless none may before `proceed`.

        Raises:
            Unavailable: The scheduler is stopping.
        """
        parts = parts_of(job, on_failure=lambda: self.abandon(job))
        now = self._clock()
        place(parts, now=now, executors=len(self._executors))
        if more and self._computes_here and is_quick(job):
            self._round.jobs.append(job)
            return
        before_queued()
        with self._changed:
            if self._stopping:
                raise _shutting_down()
            abandoned = job.abandoned
            if not abandoned:
                for part in parts:
                    self._waiting.append(part)
                if more:
                    # While the others are read, an executor can begin.
                    self._wake(now)
        if abandoned:
            for part in parts:
                _end(part, _caller_left())
        elif not more:
            self.proceed()

    def proceed(self) -> None:
        """Compute what waits here as far as it is quick and an executor idles; see to it that executors do the rest."""
        executor, until = _Executor(), self._clock() + _HERE_SECONDS
        jobs, self._round.jobs = self._round.jobs, []
        taken = self._take_round(jobs, executor) if jobs else None
        while taken is not None or (taken := self._take_here(executor, until)) is not None:
            self._drop(taken)
            if taken.batch:
                self._run(taken.batch)
            taken = None

    def _take_round(self, jobs: list[Job], executor: _Executor) -> Taken | None:
        """Return what is to be run of what this thread has submitted together; ``None`` once it waits with others."""
        left = [job for job in jobs if job.abandoned]
        if left:
            for job in left:
                _end(job, _caller_left())
            jobs = [job for job in jobs if job not in left]
        with self._changed:
            if not self._stopping:
                now = self._clock()
                if jobs and not self._waiting and self._idle > self._computing_here:
                    taken = self._waiting.take_directly(jobs, now=now)
                    if taken is not None:
                        self._computing_here += 1
                        executor.take(taken.batch, seconds=taken.seconds, now=now)
                        return taken
                for job in jobs:
                    self._waiting.append(job)
                return None
        for job in jobs:
            _end(job, _shutting_down())
        return None

    def _take_here(self, executor: _Executor, until: float) -> Taken | None:
        with self._changed:
            if executor.rows:
                self._computing_here -= 1
                self._free(executor)
            now = self._clock()
            may_compute = self._computes_here and self._idle > self._computing_here and now < until
            if self._waiting and may_compute and not self._stopping:
                taken = self._waiting.take_quick(now=now)
                if taken.batch:
                    self._computing_here += 1
                    executor.take(taken.batch, seconds=taken.seconds, now=now)
                if taken.batch or taken.expired or taken.hopeless:
                    return taken
            self._wake(now)
            return None

    @property
    def is_calm(self) -> bool:
        """Whether nothing waits, and an executor is free for what comes next."""
        with self._changed:
            return not self._waiting and self._idle > self._computing_here

    def abandon(self, job: Job) -> None:
        """Give an answer up: compute is spared as far as it has not begun; ``done`` is told once that is certain."""
        job.abandoned = True
        if job.parts:
            for part in job.parts:
                self.abandon(part)
            return
        with self._changed:
            waited = self._waiting.discard(job)
            if self._stopping:
                self._changed.notify_all()
        if waited:
            _end(job, _caller_left())

    def forecast(self, executable: Executable, *, rows: int, length: int) -> Forecast:
        """See `Forecaster.forecast`."""
        latency = executable.latency
        with self._changed:
            now = self._clock()
            busy = [executor.busy_seconds(now) for executor in self._executors]
            ahead = self._waiting.seconds_ahead(executable.identity[0])
            companions = self._waiting.rows_waiting(executable)
        alone = latency.expected_seconds(rows, length)
        if not executable.batchable:
            return Forecast(seconds_until_free(busy, ahead), latency.expected_seconds(rows, length), alone)
        largest = rows_per_part(executable, length)
        if rows > largest:
            rounds = math.ceil(rows / largest / len(busy))
            wait = seconds_until_free(busy, ahead)
            return Forecast(wait, latency.expected_seconds(largest, length) * rounds, alone / len(busy))
        batch = max(rows, min(companions + rows, largest, latency.worthwhile_rows(length)))
        # Those that would be in its batch are not ahead of it.
        _, joined = latency.costs(batch - rows, length)
        return Forecast(
            seconds_until_free(busy, max(ahead - joined, 0.0)), latency.expected_seconds(batch, length), alone
        )

    def stop(self, *, drain_seconds: float) -> bool:
        """Finish what was submitted, for so long at the most, then fail the rest; idempotent.

        Returns:
            Whether nothing is computed any more: a batch that runs cannot be interrupted.
        """
        deadline = self._clock() + drain_seconds
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            while (self._waiting or self._is_running()) and (left := deadline - self._clock()) > 0:
                self._changed.wait(left)
            abandoned = self._waiting.take_all()
            self._changed.notify_all()
        for job in abandoned:
            _end(job, _shutting_down())
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        with self._changed:
            return not self._is_running()

    def _running_rows(self) -> int:
        return sum(executor.rows for executor in self._executors)

    def _is_running(self) -> bool:
        return self._computing_here > 0 or self._running_rows() > 0

    def _execute(self, executor: _Executor) -> None:
        while (taken := self._take(executor)) is not None:
            self._drop(taken)
            if taken.batch:
                self._run(taken.batch)
            # Nothing of the last batch may outlive its answers while the next one is awaited.
            del taken

    def _take(self, executor: _Executor) -> Taken | None:
        with self._changed:
            self._free(executor)
            while True:
                now = self._clock()
                taken = self._waiting.take(
                    now=now,
                    running_rows=self._running_rows(),
                    executors=len(self._executors),
                    waits_for_more=not self._stopping,
                )
                if taken.batch or taken.expired or taken.hopeless:
                    break
                if self._stopping and not self._waiting:
                    return None
                self._idle += 1
                self._changed.wait(None if math.isinf(taken.ripe_at) else max(taken.ripe_at - now, 0.0))
                self._idle -= 1
                # Whoever is awake looks at what waits, so that nobody else need be on the way.
                self._waking = False
            if taken.batch:
                executor.take(taken.batch, seconds=taken.seconds, now=now)
            # What was left behind may be for another executor, or be ripe at a time that only this one knew.
            self._wake(now)
            return taken

    def _free(self, executor: _Executor) -> None:
        if not executor.rows:
            return
        spent = self._clock() - executor.started
        self._share.correct(executor.model, spent - executor.seconds)
        executor.rows = 0
        if self._stopping:
            # Only `stop` waits for this; idle executors wait for jobs.
            self._changed.notify_all()

    def _wake(self, now: float) -> None:
        """Wake an executor if something waits that no other will take at once; it wakes the next one if need be.

        To wake one costs about as much as a small graph takes, so one that is being woken already, or about to be
        free, is left to take what waits.
        """
        if self._waking or not self._idle or not self._waiting:
            return
        if not any(executor.is_nearly_free(now) for executor in self._executors):
            self._waking = True
            self._changed.notify()

    def _drop(self, taken: Taken) -> None:
        now = self._clock()
        for job in taken.expired:
            _tell(self._on_drop, job.executable, Drop.EXPIRED)
            _end(job, DeadlineExceeded(f"the deadline passed {now - job.deadline:.3f} s before compute began"))
        for job in taken.hopeless:
            _tell(self._on_drop, job.executable, Drop.HOPELESS)
            left_ms, needed_ms = (job.deadline - now) * 1000, job.alone_seconds * 1000
            _end(
                job,
                DeadlineExceeded(
                    f"the deadline, in {left_ms:.3g} ms, would pass during compute, which takes about "
                    f"{needed_ms:.3g} ms; allow more time, or ask for a faster tier"
                ),
            )

    def _run(self, jobs: Sequence[Job]) -> None:
        executable = jobs[0].executable
        started = self._clock()
        answers, error = self._answers(jobs)
        if error is not None:
            if len(jobs) == 1:
                _end(jobs[0], error)
                return
            # One request that the graph refuses must not fail those it happened to meet.
            for job in jobs:
                if job.abandoned:
                    _end(job, _caller_left())
                else:
                    self._run([job])
            return
        seconds = self._clock() - started
        rows = sum(job.rows for job in jobs)
        executable.latency.observe(rows, max(job.length for job in jobs), seconds)
        _tell(self._on_batch, executable, rows)
        for job, answer in zip(jobs, answers, strict=True):
            _end(job, JobResult(answer, started - job.enqueued, seconds, rows))
        _tell(self.after_batch)

    def _answers(self, jobs: Sequence[Job]) -> tuple[list[list[Array]], ServePruneError | None]:
        """Return what each job gets, or why there is nothing."""
        try:
            feeds, outputs = collate(jobs)
            return split(jobs, outputs, jobs[0].executable.run(feeds, outputs=outputs)), None
        except ServePruneError as error:
            return [], error.without_frames()
        except Exception:  # an executor thread must outlive any one batch
            if len(jobs) == 1:
                _log.exception("a request failed")
            return [], Internal("internal error; see the server's log")


def _end(job: Job, result: JobResult | ServePruneError) -> None:
    _tell(job.end, result)


def _tell(listener: Callable[..., None], *news: object) -> None:
    """Tell others what happened; that they fail must not end an executor, nor keep the news from the next one."""
    try:
        listener(*news)
    except Exception:
        _log.exception("what a job's end was told to failed")


def _caller_left() -> Cancelled:
    return Cancelled("the caller left before the request was computed")


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", retry_after_seconds=1.0)
