import numpy as np
import pytest
from unit.scheduling.variants import Variant

from serveprune.oip.tensor import Array
from serveprune.scheduling.job import Job
from serveprune.scheduling.padding import Padding


def job(variant: Variant, **shapes: tuple[int, ...]) -> Job:
    feeds: dict[str, Array] = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return Job(variant, feeds, next(iter(shapes.values()))[0], 10.0, lambda result: None)


def test_jobs_may_share_a_run_when_their_rows_are_of_one_shape() -> None:
    variant = Variant()
    assert job(variant, x=(1, 3, 4)).signature == job(variant, x=(7, 3, 4)).signature
    assert job(variant, x=(1, 3, 4)).signature != job(variant, x=(1, 4, 3)).signature
    assert job(variant, x=(1, 3), y=(1, 2)).signature == job(variant, y=(1, 2), x=(1, 3)).signature
    assert job(variant, x=(1, 3), y=(1, 2)).signature != job(variant, x=(1, 2), y=(1, 3)).signature


def test_jobs_may_share_a_run_whatever_their_length_when_it_is_padded() -> None:
    variant = Variant(padding=Padding({"ids": 0, "mask": 0}, frozenset()))
    short, long = job(variant, ids=(1, 3), mask=(1, 3), bias=(1, 9)), job(variant, ids=(2, 8), mask=(2, 8), bias=(2, 9))
    assert (short.signature, short.length, long.length) == (long.signature, 3, 8)
    assert job(variant, ids=(1, 3), mask=(1, 3), bias=(1, 8)).signature != short.signature
    # Whose inputs disagree, the graph may refuse or not: they are for its judgement alone.
    odd = job(variant, ids=(1, 3), mask=(1, 4), bias=(1, 9))
    assert odd.signature != short.signature
    assert odd.signature != job(variant, ids=(1, 4), mask=(1, 3), bias=(1, 9)).signature


def test_length_is_that_of_the_largest_row_when_nothing_is_padded() -> None:
    assert job(Variant(), x=(2, 3, 4), y=(2, 5)).length == 12
    assert job(Variant(), x=(2,)).length == 1
    fixed = job(Variant(fixed_length=12), x=(2, 3, 4))
    assert (fixed.length, fixed.signature) == (12, ())


@pytest.mark.parametrize(("target", "expected"), [(float("inf"), 10.0), (5.0, 5.0), (20.0, 10.0)])
def test_answer_is_wanted_by_the_deadline_at_the_latest(target: float, expected: float) -> None:
    one = Job(Variant(), {"x": np.zeros((1, 2))}, 1, 10.0, lambda result: None, target=target)
    assert one.target == expected
