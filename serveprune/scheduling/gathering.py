import threading
from collections.abc import Callable, Sequence

from serveprune.errors import ServePruneError
from serveprune.scheduling.collate import join
from serveprune.scheduling.job import Done, Job, JobResult


class Gathering:
    """Puts the answers of a large job's parts together; parts may end in any order, on any thread."""

    def __init__(self, job: Job, *, parts: int, on_failure: Callable[[], None]) -> None:
        """Wait for parts.

        Args:
            job: The whole; its ``done`` is called once.
            parts: How many there are.
            on_failure: Called when a part fails, so that the others may be given up.
        """
        self._job = job
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._results: list[JobResult | None] = [None] * parts
        self._missing = parts
        self._ended = False

    def part(self, index: int) -> Done:
        """Return the ``done`` of one part."""
        return lambda result: self._take(index, result)

    def _take(self, index: int, result: JobResult | ServePruneError) -> None:
        with self._lock:
            if self._ended:
                return
            if isinstance(result, JobResult):
                self._results[index] = result
                self._missing -= 1
            self._ended = self._missing == 0 or not isinstance(result, JobResult)
            if not self._ended:
                return
        if isinstance(result, JobResult):
            result = self._whole([part for part in self._results if part is not None])
        try:
            self._job.end(result)
        finally:
            if not isinstance(result, JobResult):
                self._on_failure()

    def _whole(self, parts: Sequence[JobResult]) -> JobResult | ServePruneError:
        try:
            outputs = join(self._job, [part.outputs for part in parts])
        except ServePruneError as error:
            return error
        return JobResult(
            outputs,
            queue_seconds=min(part.queue_seconds for part in parts),
            compute_seconds=sum(part.compute_seconds for part in parts),
            batch_rows=max(part.batch_rows for part in parts),
        )
