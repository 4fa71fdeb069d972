from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serveprune.oip.tensor import Array
from serveprune.scheduling.batch_policy import select_batch
from serveprune.scheduling.job import Job


@dataclass(eq=False)
class Doubler:
    """A variant that doubles its input; enough to be scheduled."""

    max_batch_size: int = 8
    batchable: bool = True
    identity: tuple[str, str, str] = ("doubler", "1", "dense")
    output_names: tuple[str, ...] = ("y",)

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str] = ()) -> list[Array]:
        return [feeds["x"] * 2 for _ in outputs]


def job(executable: Doubler, rows: int, width: int = 3) -> Job:
    return Job(executable, {"x": np.ones((rows, width), np.float32)}, rows, deadline=1e9)


def test_batch_holds_jobs_in_order_when_they_fit() -> None:
    variant = Doubler(max_batch_size=4)
    jobs = [job(variant, 1), job(variant, 2), job(variant, 2), job(variant, 1)]
    assert select_batch(jobs) == [jobs[0], jobs[1], jobs[3]]


def test_batch_skips_jobs_when_their_shapes_or_variants_differ() -> None:
    variant, other = Doubler(), Doubler()
    jobs = [job(variant, 1), job(variant, 1, width=5), job(other, 1), job(variant, 1)]
    assert select_batch(jobs) == [jobs[0], jobs[3]]


def test_batch_is_the_oldest_job_alone_when_rows_must_stay_apart() -> None:
    variant = Doubler(batchable=False)
    jobs = [job(variant, 1), job(variant, 1)]
    assert select_batch(jobs) == [jobs[0]]


def test_batch_is_one_job_when_it_is_larger_than_the_limit() -> None:
    variant = Doubler(max_batch_size=4)
    jobs = [job(variant, 9), job(variant, 1)]
    assert select_batch(jobs) == [jobs[0]]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(1, 2)), min_size=1, max_size=30),
    st.integers(1, 16),
)
def test_batch_always_makes_progress_within_the_limit(arrivals: list[tuple[int, int, int]], limit: int) -> None:
    variants = [Doubler(limit), Doubler(limit), Doubler(limit, batchable=False)]
    waiting = [job(variants[which], rows, width) for which, rows, width in arrivals]
    batch = select_batch(waiting)
    assert batch[0] is waiting[0]
    assert [waiting.index(one) for one in batch] == sorted(waiting.index(one) for one in batch)
    assert len({one.signature for one in batch}) == len({id(one.executable) for one in batch}) == 1
    assert len(batch) == 1 or (batch[0].executable.batchable and sum(one.rows for one in batch) <= limit)
