"""Join the tensors of several jobs into one batch and hand each its own rows back, or cut a large job into parts."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from serveprune.errors import Internal
from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Job
from serveprune.scheduling.padding import cut, stack


def collate(jobs: Sequence[Job]) -> tuple[Mapping[str, Array], tuple[str, ...]]:
    """Return the joined inputs, ``(sum of rows, ...)`` each, and the union of the wanted outputs.

    Jobs of different length are padded to the longest.
    """
    if len(jobs) == 1:
        return jobs[0].feeds, jobs[0].wanted()
    padded = _padded_values(jobs)
    longest = max(job.length for job in jobs)
    feeds = {
        name: stack([job.feeds[name] for job in jobs], length=longest, value=padded[name])
        if name in padded
        else stack([job.feeds[name] for job in jobs])
        for name in jobs[0].feeds
    }
    outputs = tuple(dict.fromkeys(name for job in jobs for name in job.wanted()))
    return feeds, outputs


def split(jobs: Sequence[Job], outputs: Sequence[str], arrays: Sequence[Array]) -> list[list[Array]]:
    """Return for each job its rows of the outputs it wants, in its order, as long as its own inputs are.

    Raises:
        Internal: An output's leading axis is not the number of rows that went in.
    """
    by_name = dict(zip(outputs, arrays, strict=True))
    if len(jobs) == 1:
        return [[by_name[name] for name in jobs[0].wanted()]]
    _check_rows(by_name, sum(job.rows for job in jobs))
    padding = jobs[0].executable.padding
    cut_back = padding.outputs if padding is not None and _padded_values(jobs) else ()
    answers, start = [], 0
    for job in jobs:
        rows = slice(start, start + job.rows)
        answers.append(
            [cut(by_name[name][rows], job.length) if name in cut_back else by_name[name][rows] for name in job.wanted()]
        )
        start += job.rows
    return answers


def slices(job: Job, max_rows: int) -> Iterator[Mapping[str, Array]]:
    """Yield the inputs of a job in order, at most so many rows at a time."""
    for start in range(0, job.rows, max_rows):
        yield {name: array[start : start + max_rows] for name, array in job.feeds.items()}


def join(job: Job, parts: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the outputs of a job from those of its parts.

    Raises:
        Internal: An output's leading axis is not the number of rows that went in, or the others differ.
    """
    try:
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    except ValueError as error:
        raise Internal(f"the outputs of a request's parts do not fit together: {error}") from error
    _check_rows(dict(zip(job.wanted(), joined, strict=True)), job.rows)
    return joined


def _padded_values(jobs: Sequence[Job]) -> Mapping[str, int]:
    """Return input -> what lengthens it, where the jobs' lengths differ."""
    padding = jobs[0].executable.padding
    if padding is None or all(job.length == jobs[0].length for job in jobs):
        return {}
    return padding.values


def _check_rows(outputs: Mapping[str, Array], rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise Internal(f"output {name}: expected {rows} rows for {rows} rows of input, got {array.shape}")
