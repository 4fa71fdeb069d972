"""Join the tensors of several jobs into one batch and hand each its own rows back, or cut a large job into slices."""

from collections.abc import Iterator, Mapping, Sequence

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
    _check_rows(by_name, total)
    answers, start = [], 0
    for job in jobs:
        stop = start + job.rows
        answers.append([by_name[name][start:stop] for name in job.wanted()])
        start = stop
    return answers


def slices(job: Job, max_rows: int) -> Iterator[Mapping[str, Array]]:
    """Yield the inputs of a job in order, at most so many rows at a time."""
    for start in range(0, job.rows, max_rows):
        yield {name: array[start : start + max_rows] for name, array in job.feeds.items()}


def join(job: Job, parts: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the outputs of a job from those of its slices.

    Raises:
        Internal: An output's leading axis is not the number of rows that went in.
    """
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    _check_rows(dict(zip(job.wanted(), joined, strict=True)), job.rows)
    return joined


def _check_rows(outputs: Mapping[str, Array], rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise Internal(f"output {name}: expected {rows} rows for {rows} rows of input, got {array.shape}")
