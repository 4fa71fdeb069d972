"""Which waiting jobs share the next run. Pure: no clock, no queue, no threads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serveprune.scheduling.job import Job

Seconds = Callable[[int, int], float]
"""What a batch takes, by its rows and their length."""

_CANDIDATES_PER_ROW = 4
"""Enough to find some of similar length."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may become.

    Attributes:
        rows: A job that has more shares its run with no other.
        elements: Rows times the longest of them, padding included; ``None`` for no bound.
    """

    rows: int
    elements: int | None = None

    @property
    def candidates(self) -> int:
        """How many of the most urgent jobs are worth looking at."""
        return self.rows * _CANDIDATES_PER_ROW


def rows_for_batch(*, present_rows: int, executors: int, quick_rows: int, worthwhile_rows: int, max_rows: int) -> int:
    """Return how many rows the next batch should have at the most.

    No executor takes more than its share of all that is there, so that none idles while another computes what both
    could have computed; unless it is so quick that waking the other would take longer. And no batch is larger than
    what was measured to pay, for that would only make rows wait.

    Args:
        present_rows: Waiting or running, of all variants.
        executors: Free or busy.
        quick_rows: That are not worth dividing.
        worthwhile_rows: From which on more bring no more rows a second.
        max_rows: What the operator allows.
    """
    share = -(-present_rows // executors)
    return max(1, min(max(share, quick_rows), worthwhile_rows, max_rows))


def select_batch(waiting: Sequence[Job], *, limits: BatchLimits, seconds: Seconds, now: float) -> list[Job]:
    """Return the jobs to run together now: the most urgent one, and those that fit with it.

    Jobs of one length join in order of urgency. Of different lengths, those nearest in length to the most urgent
    one join, as long as padding takes no longer than running them apart. Nobody joins who would make a job late
    that would be in time without.

    Args:
        waiting: Jobs that may share a run apart from its size, the most urgent first, at least one.
        limits: Of the batch.
        seconds: What a batch of the variant takes.
        now: On the clock of the jobs' targets.
    """
    head = waiting[0]
    if head.rows >= limits.rows or len(waiting) == 1:
        return [head]
    if all(job.length == head.length for job in waiting):
        batch = _fill(waiting, limits)
    else:
        batch = _window(waiting, limits, seconds)
    return _in_time(batch, seconds, now)


def _fill(candidates: Sequence[Job], limits: BatchLimits) -> list[Job]:
    """Take what fits in order of urgency; a job is skipped, never split."""
    batch: list[Job] = []
    rows, length = 0, candidates[0].length
    for job in candidates:
        if not batch or _fits(rows + job.rows, length, limits):
            batch.append(job)
            rows += job.rows
            if rows == limits.rows:
                break
    return batch


def _window(candidates: Sequence[Job], limits: BatchLimits, seconds: Seconds) -> list[Job]:
    """Grow a window around the most urgent job among the others by length, towards where more time is saved."""
    head = candidates[0]
    # On either side the most urgent ones of a length are nearest to the head.
    shorter = sorted((job for job in reversed(candidates) if job.length < head.length), key=lambda job: job.length)
    longer = sorted((job for job in candidates if job.length >= head.length), key=lambda job: job.length)
    by_length = shorter + longer
    left = right = len(shorter)
    batch, rows, length = [head], head.rows, head.length
    while True:
        sides = []
        for index in (left - 1, right + 1):
            if 0 <= index < len(by_length):
                job = by_length[index]
                longest = max(length, job.length)
                if _fits(rows + job.rows, longest, limits):
                    apart = seconds(rows, length) + seconds(job.rows, job.length)
                    sides.append((apart - seconds(rows + job.rows, longest), index))
        saved, index = max(sides, default=(-1.0, 0))
        if saved < 0:
            return batch
        left, right = min(left, index), max(right, index)
        batch.append(by_length[index])
        rows += by_length[index].rows
        length = max(length, by_length[index].length)


def _fits(rows: int, length: int, limits: BatchLimits) -> bool:
    return rows <= limits.rows and (limits.elements is None or rows * length <= limits.elements)


def _in_time(batch: list[Job], seconds: Seconds, now: float) -> list[Job]:
    """Leave the last ones out until nobody is late who would not be late alone."""
    sizes, rows, length = [], 0, 0
    for job in batch:
        rows, length = rows + job.rows, max(length, job.length)
        sizes.append((rows, length))
    if now + seconds(rows, length) <= min(job.target for job in batch):
        return batch
    wanted = [job.target if now + seconds(job.rows, job.length) <= job.target else float("inf") for job in batch]
    for size in range(len(batch), 1, -1):
        if now + seconds(*sizes[size - 1]) <= min(wanted[:size]):
            return batch[:size]
    return batch[:1]
