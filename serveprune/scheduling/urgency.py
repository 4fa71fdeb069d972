"""In which order jobs are computed. Pure."""

HIGHEST_PRIORITY, DEFAULT_PRIORITY, LOWEST_PRIORITY = 1, 2, 3

AGEING_SECONDS = 1.0
"""What a job without a nearer deadline may be overtaken by, and what one level of priority is worth."""


def due(*, enqueued: float, target: float, priority: int) -> float:
    """Return the moment by which a job counts as overdue; the job with the earliest goes first.

    Earliest deadline first, with ageing: whatever its target, a job is due one second after its arrival, so that
    what comes later with a nearer deadline overtakes it for so long at the most. A level of priority shifts that by
    a second, so low priority means waiting, not starving.

    Args:
        enqueued: When it arrived.
        target: When its answer is wanted.
        priority: From `HIGHEST_PRIORITY` to `LOWEST_PRIORITY`.
    """
    return min(target, enqueued + AGEING_SECONDS) + (priority - DEFAULT_PRIORITY) * AGEING_SECONDS
