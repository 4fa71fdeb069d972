"""What is queued for a job: itself, or parts of it, and their places in the order."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from serveprune.scheduling.collate import slices
from serveprune.scheduling.gathering import Gathering
from serveprune.scheduling.job import Executable, Job
from serveprune.scheduling.urgency import due


def parts_of(job: Job, *, on_failure: Callable[[], None]) -> Sequence[Job]:
    """Return what is queued for a job: itself, or its parts if it is larger than a batch may be.

    Args:
        job: Has no parts yet.
        on_failure: Called when a part fails, so that the others may be given up.
    """
    if not job.executable.batchable:
        return (job,)
    most = rows_per_part(job.executable, job.length)
    if job.rows <= most:
        return (job,)
    cut = list(slices(job, most))
    gathering = Gathering(job, parts=len(cut), on_failure=on_failure)
    job.parts = tuple(
        replace(job, feeds=feeds, rows=len(next(iter(feeds.values()))), done=gathering.part(index))
        for index, feeds in enumerate(cut)
    )
    job.feeds = {}
    return job.parts


def rows_per_part(executable: Executable, length: int) -> int:
    """Return the rows of one request that are computed at once, at the most."""
    if executable.max_batch_elements is None:
        return executable.max_batch_size
    return max(1, min(executable.max_batch_size, executable.max_batch_elements // max(length, 1)))


def place(parts: Sequence[Job], *, now: float, executors: int) -> None:
    """Set the places in the order of a job, or of its parts, and what they take.

    A part counts as if it came when those before it are done, so that a large job is not ahead of all that comes
    after it. And what it takes is what is left of the whole: to compute a part of an answer that will be late is in
    vain.
    """
    for part in parts:
        part.enqueued = now
        part.alone_seconds, part.cost_seconds = part.executable.latency.costs(part.rows, part.length)
        part.due = due(enqueued=now, target=part.target, priority=part.priority)
    if len(parts) == 1:
        return
    each = [part.alone_seconds for part in parts]
    for index, part in enumerate(parts):
        begins = sum(each[:index]) / executors
        part.due = due(enqueued=now + begins, target=part.target, priority=part.priority)
        part.alone_seconds = max(each[index], sum(each[index:]) / executors)
