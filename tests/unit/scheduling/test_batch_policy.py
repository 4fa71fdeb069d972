from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.scheduling.variants import Variant

from serveprune.scheduling.batch_policy import BatchLimits, rows_for_batch, select_batch
from serveprune.scheduling.job import Job
from serveprune.scheduling.padding import Padding

SEQUENCES = Variant(padding=Padding({"x": 0}, frozenset()), output_names=("y",))
"""A variant that takes rows of any length."""


def job(rows: int, length: int = 1, *, target: float = float("inf")) -> Job:
    x = np.zeros((rows, length), np.float32)
    return Job(SEQUENCES, {"x": x}, rows, 1e9, lambda result: None, target=target)


def per_element(rows: int, length: int) -> float:
    return 1.0 + 0.1 * rows * length


def select(waiting: list[Job], *, rows: int = 8, elements: int | None = None, **options: Any) -> list[Job]:
    return select_batch(
        waiting, limits=BatchLimits(rows, elements), seconds=options.get("seconds", per_element), now=0.0
    )


def test_batch_holds_jobs_in_order_when_they_fit() -> None:
    jobs = [job(1), job(2), job(2), job(1)]
    assert select(jobs, rows=4) == [jobs[0], jobs[1], jobs[3]]


def test_batch_is_one_job_when_it_is_larger_than_the_limit() -> None:
    jobs = [job(9), job(1)]
    assert select(jobs, rows=4) == [jobs[0]]


def test_batch_keeps_to_the_elements_it_may_have_with_padding() -> None:
    jobs = [job(1, 4), job(1, 4), job(1, 4), job(1, 6)]
    assert select(jobs, elements=12) == jobs[:3]
    # The longest counts for all.
    assert select([jobs[0], jobs[3], jobs[1]], elements=12) == [jobs[0], jobs[1]]
    assert select([jobs[3], jobs[0], jobs[1]], elements=12) == [jobs[3], jobs[0]]


def test_those_nearest_in_length_join_when_lengths_differ() -> None:
    head, longer, near, same = job(1, 20), job(1, 100), job(1, 22), job(1, 20)
    assert select([head, longer, near, same], rows=3) == [head, same, near]


def test_padding_ends_where_it_takes_longer_than_two_runs() -> None:
    short, long = job(1, 2), job(1, 9)
    # Alone 1.2 and 1.9 s, together 2.8 s.
    assert select([short, long]) == [short, long]
    long = job(1, 13)
    # Alone 1.2 and 2.3 s, together 3.6 s.
    assert select([short, long]) == [short]


def test_nobody_joins_who_would_make_a_job_late() -> None:
    head, others = job(1, target=1.25), [job(1) for _ in range(4)]
    assert select([head, *others]) == [head, others[0]]
    # For one that is late in any case the batch is not made smaller.
    assert len(select([job(1, target=1.05), *others])) == 5


def test_rows_for_batch_are_an_executors_share_of_what_is_there() -> None:
    limits = {"quick_rows": 1, "worthwhile_rows": 32, "max_rows": 64}
    assert rows_for_batch(present_rows=9, executors=2, **limits) == 5
    assert rows_for_batch(present_rows=9, executors=1, **limits) == 9
    assert rows_for_batch(present_rows=200, executors=2, **limits) == 32


def test_rows_for_batch_are_not_divided_when_they_are_quick() -> None:
    assert rows_for_batch(present_rows=9, executors=4, quick_rows=8, worthwhile_rows=32, max_rows=64) == 8
    assert rows_for_batch(present_rows=9, executors=4, quick_rows=80, worthwhile_rows=32, max_rows=16) == 16


@given(*[st.integers(0, 100)] * 1, *[st.integers(1, 100)] * 4)
def test_rows_for_batch_keep_to_every_bound(
    present: int, executors: int, quick: int, worthwhile: int, most: int
) -> None:
    rows = rows_for_batch(
        present_rows=present, executors=executors, quick_rows=quick, worthwhile_rows=worthwhile, max_rows=most
    )
    assert 1 <= rows <= min(worthwhile, most)
    if rows < min(worthwhile, most):
        # Enough for all executors together, so that nothing is left when all have taken.
        assert rows * executors >= present


LENGTHS = st.sampled_from((1, 2, 3, 5, 8, 13, 40))
ARRIVALS = st.lists(
    st.tuples(st.integers(1, 12), LENGTHS, st.floats(0, 8) | st.just(float("inf"))), min_size=1, max_size=40
)
COSTS = st.tuples(st.floats(0, 2), st.floats(0, 0.5), st.floats(0, 0.1))


@settings(max_examples=300)
@given(ARRIVALS, st.integers(1, 16), st.none() | st.integers(1, 100), COSTS)
def test_batch_always_keeps_its_promises(
    arrivals: list[tuple[int, int, float]], rows: int, elements: int | None, costs: tuple[float, float, float]
) -> None:
    run, row, element = costs

    def seconds(rows: int, length: int) -> float:
        return run + row * rows + element * rows * length

    waiting = [job(count, length, target=target) for count, length, target in arrivals]
    batch = select(waiting, rows=rows, elements=elements, seconds=seconds)

    assert batch[0] is waiting[0]
    assert len({id(one) for one in batch}) == len(batch)
    assert all(one in waiting for one in batch)
    total, longest = sum(one.rows for one in batch), max(one.length for one in batch)
    if len(batch) == 1:
        return
    assert total <= rows
    assert elements is None or total * longest <= elements
    finish = seconds(total, longest)
    for one in batch:
        assert finish <= one.target or seconds(one.rows, one.length) > one.target
    # Padding never takes longer than to run all of them apart.
    assert finish <= sum(seconds(one.rows, one.length) for one in batch) + 1e-9


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(1, 16))
def test_batch_of_one_length_leaves_out_only_what_does_not_fit(arrivals: list[int], limit: int) -> None:
    waiting = [job(rows) for rows in arrivals]
    batch = select(waiting, rows=limit)
    left = limit - sum(one.rows for one in batch)
    # Each that was left out did not fit when its turn came, nor would it now.
    assert all(one.rows > left for one in waiting if one not in batch)
    assert [waiting.index(one) for one in batch] == sorted(waiting.index(one) for one in batch)


@pytest.mark.parametrize("rows", [1, 7])
def test_limits_look_at_no_more_candidates_than_may_be_of_use(rows: int) -> None:
    assert rows < BatchLimits(rows).candidates <= 4 * rows
