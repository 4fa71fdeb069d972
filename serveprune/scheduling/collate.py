"""Join the tensors of several jobs into one batch, and hand each its own rows back."""

from collections.abc import Mapping, Sequence

import numpy as np

from serveprune.errors import Internal
from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Job


def collate(jobs: Sequence[Job]) -> tuple[Mapping[str, Array], tuple[str, ...]]:
    """Return the joined inputs, ``(sum of rows, ...)`` each, and the union of the wanted outputs."""
    if len(jobs) == 1:
        return jobs[0].feeds, jobs[0].wanted()
    feeds = {name: np.concatenate([job.feeds[name] for job in jobs]) for name in jobs[0].feeds}
    outputs = tuple(dict.fromkeys(name for job in jobs for name in job.wanted()))
    return feeds, outputs


def split(jobs: Sequence[Job], outputs: Sequence[str], arrays: Sequence[Array]) -> list[list[Array]]:
    """Return for each job its rows of the outputs it wants, in its order.

    Raises:
        Internal: An output's leading axis is not the number of rows that went in.
    """
    by_name = dict(zip(outputs, arrays, strict=True))
    if len(jobs) == 1:
        return [[by_name[name] for name in jobs[0].wanted()]]
    total = sum(job.rows for job in jobs)
    for name, array in by_name.items():
        if array.ndim == 0 or len(array) != total:
            raise Internal(f"output {name}: expected {total} rows for {total} rows of input, got {array.shape}")
    answers, start = [], 0
    for job in jobs:
        stop = start + job.rows
        answers.append([by_name[name][start:stop] for name in job.wanted()])
        start = stop
    return answers
