import logging
import threading
import time
from collections.abc import Callable, Sequence

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, ServePruneError, Unavailable
from serveprune.oip.tensor import Array
from serveprune.scheduling.collate import collate, join, slices, split
from serveprune.scheduling.job import Executable, Job, JobResult
from serveprune.scheduling.job_queue import JobQueue

_log = logging.getLogger(__name__)


class Scheduler:
    """Runs jobs of all variants on a bounded set of executor threads.

    Work-conserving: a free executor takes at once what waits, as one batch where it fits; nothing waits for a
    timer. A job larger than its variant's batch limit is computed slice by slice where rows are apart, so that
    no request decides how much memory a run takes. Jobs whose caller is gone are forgotten at once, and those
    whose deadline has passed are dropped before compute. The jobs of a batch that fails are run one by one, so
    that each fails or succeeds for itself. Thread-safe.
    """

    def __init__(
        self,
        *,
        executors: int,
        on_batch: Callable[[Executable, int], None] = lambda executable, rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the executors.

        Args:
            executors: Batches computed at the same time, at the most.
            on_batch: Called with the variant and the number of rows after each computed batch.
            clock: Monotonic seconds; deadlines of jobs are on it.
        """
        self._clock = clock
        self._on_batch = on_batch
        self._waiting = JobQueue()
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = self._out_of_time = False
        self._threads = [
            threading.Thread(target=self._execute, name=f"executor-{index}", daemon=True) for index in range(executors)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its future is completed from an executor thread.

        Raises:
            Unavailable: The scheduler is stopping.
        """
        with self._changed:
            if self._stopping:
                raise _shutting_down()
            job.enqueued = self._clock()
            self._waiting.append(job)
            self._changed.notify()
        job.future.add_done_callback(lambda future: self._forget(job) if future.cancelled() else None)

    def stop(self, *, drain_seconds: float) -> bool:
        """Finish what was submitted, for so long at the most, then fail the rest; idempotent.

        Returns:
            Whether nothing is computed any more: a batch that runs cannot be interrupted.
        """
        deadline = self._clock() + drain_seconds
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            while (self._waiting or self._running) and (left := deadline - self._clock()) > 0:
                self._changed.wait(left)
            abandoned = self._waiting.take_all()
            self._out_of_time = True
            self._changed.notify_all()
        for job in abandoned:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(_shutting_down())
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        with self._changed:
            return not self._running

    def _execute(self) -> None:
        while (batch := self._take()) is not None:
            try:
                self._run([job for job in batch if self._still_wanted(job)])
            finally:
                with self._changed:
                    self._running -= 1
                    if self._stopping:
                        # Only `stop` waits for this; idle executors wait for jobs.
                        self._changed.notify_all()
                for job in batch:
                    job.feeds = {}
                batch.clear()

    def _take(self) -> list[Job] | None:
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return None
                self._changed.wait()
            self._running += 1
            return self._waiting.take_batch()

    def _forget(self, job: Job) -> None:
        with self._changed:
            self._waiting.discard(job)
            if self._stopping:
                self._changed.notify_all()
        # The future keeps the job alive for as long as anybody holds it.
        job.feeds = {}

    def _still_wanted(self, job: Job) -> bool:
        if not job.future.set_running_or_notify_cancel():
            return False
        late = self._clock() - job.deadline
        if late > 0:
            job.future.set_exception(DeadlineExceeded(f"the deadline passed {late:.3f} s before compute began"))
        return late <= 0

    def _run(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        started = self._clock()
        try:
            answers = self._answers(jobs)
        except Exception as error:  # an executor thread must outlive any one batch
            if len(jobs) > 1:
                # One request that the graph refuses must not fail those it happened to meet.
                for job in jobs:
                    self._run([job])
                return
            if not isinstance(error, ServePruneError):
                _log.exception("a request failed")
                error = Internal("internal error; see the server's log")
            jobs[0].future.set_exception(error.without_frames())
            return
        finished = self._clock()
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(JobResult(answer, started - job.enqueued, finished - started))

    def _answers(self, jobs: Sequence[Job]) -> list[list[Array]]:
        executable = jobs[0].executable
        if executable.batchable and jobs[0].rows > executable.max_batch_size:
            return [self._in_slices(jobs[0])]
        feeds, outputs = collate(jobs)
        arrays = executable.run(feeds, outputs=outputs)
        self._on_batch(executable, sum(job.rows for job in jobs))
        return split(jobs, outputs, arrays)

    def _in_slices(self, job: Job) -> list[Array]:
        """Compute a job piece by piece, which gives the same answer because its rows are apart."""
        parts = []
        for feeds in slices(job, job.executable.max_batch_size):
            self._check_wanted(job)
            parts.append(job.executable.run(feeds, outputs=job.wanted()))
            self._on_batch(job.executable, len(next(iter(feeds.values()))))
        return join(job, parts)

    def _check_wanted(self, job: Job) -> None:
        if job.abandoned:
            raise Cancelled("the caller left before all of the request was computed")
        if self._clock() > job.deadline:
            raise DeadlineExceeded("the deadline passed before all of the request was computed")
        if self._out_of_time:
            raise _shutting_down()


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", retry_after_seconds=1.0)
