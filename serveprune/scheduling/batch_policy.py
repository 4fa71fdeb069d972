"""Which waiting jobs share the next run. Pure: no clock, no queue, no threads."""

from collections.abc import Iterable

from serveprune.scheduling.job import Job


def select_batch(waiting: Iterable[Job]) -> list[Job]:
    """Return the jobs to run together now: the oldest one, and those behind it that fit with it.

    Jobs fit when they run on the same variant, their tensors differ in nothing but the number of rows, and
    the rows together stay within the variant's batch limit. A job larger than the limit shares its run with no
    other. Order of arrival is kept, and a job is skipped, never split.

    Args:
        waiting: Jobs in order of arrival, at least one.
    """
    others = iter(waiting)
    head = next(others)
    if not head.executable.batchable:
        return [head]
    batch, rows = [head], head.rows
    for job in others:
        if rows >= head.executable.max_batch_size:
            break
        fits = (
            job.executable is head.executable
            and job.signature == head.signature
            and rows + job.rows <= head.executable.max_batch_size
        )
        if fits:
            batch.append(job)
            rows += job.rows
    return batch
