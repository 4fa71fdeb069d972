import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from serveprune.errors import Cancelled, DeadlineExceeded, Internal, ServePruneError, Unavailable
from serveprune.scheduling.batch_policy import select_batch
from serveprune.scheduling.collate import collate, split
from serveprune.scheduling.job import Executable, Job, JobResult

_log = logging.getLogger(__name__)


class Scheduler:
    """Runs jobs of all variants on a bounded set of executor threads.

    Work-conserving: a free executor takes at once what waits, as one batch where it fits; nothing waits for a
    timer. Jobs whose caller is gone or whose deadline has passed are dropped before compute. The jobs of a
    batch that fails are run one by one, so that each fails or succeeds for itself. Thread-safe.
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
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = False
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
                raise Unavailable("the server is shutting down", retry_after_seconds=1.0)
            job.enqueued = self._clock()
            self._waiting.append(job)
            self._changed.notify()

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
            abandoned = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for job in abandoned:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Cancelled("the server shut down before the request was computed"))
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
                    self._changed.notify_all()

    def _take(self) -> list[Job] | None:
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return None
                self._changed.wait()
            batch = select_batch(self._waiting)
            taken = set(map(id, batch))
            self._waiting = deque(job for job in self._waiting if id(job) not in taken)
            self._running += 1
            return batch

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
            feeds, outputs = collate(jobs)
            arrays = jobs[0].executable.run(feeds, outputs=outputs)
            answers = split(jobs, outputs, arrays)
        except Exception as error:  # an executor thread must outlive any one batch
            if len(jobs) > 1:
                # One request that the graph refuses must not fail those it happened to meet.
                for job in jobs:
                    self._run([job])
                return
            if not isinstance(error, ServePruneError):
                _log.exception("a request failed")
                error = Internal("internal error; see the server's log")
            jobs[0].future.set_exception(error)
            return
        finished = self._clock()
        rows = sum(job.rows for job in jobs)
        self._on_batch(jobs[0].executable, rows)
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(JobResult(answer, started - job.enqueued, finished - started, rows))
