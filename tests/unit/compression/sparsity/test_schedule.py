import pytest

from serveprune.compression.sparsity.schedule import sparsities
from serveprune.config.sparsity import SparsitySchedule


def test_one_round_goes_all_the_way() -> None:
    assert sparsities(SparsitySchedule(), start=0.0, target=0.9) == (0.9,)


def test_cubic_schedule_is_that_of_zhu_and_gupta() -> None:
    # By hand: 0.8 * (1 - (1 - t / 4) ** 3) for t = 1..4.
    found = sparsities(SparsitySchedule(rounds=4), start=0.0, target=0.8)
    assert found == pytest.approx((0.4625, 0.7, 0.7875, 0.8))


def test_linear_schedule_begins_at_the_zeros_there_are() -> None:
    found = sparsities(SparsitySchedule(rounds=2, curve="linear"), start=0.4, target=0.8)
    assert found == pytest.approx((0.6, 0.8))
