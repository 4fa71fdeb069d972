import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.compression.pruning.footprint_cost import FootprintCost, SizeProduct
from serveprune.compression.pruning.group_axes import AxisSize
from serveprune.compression.pruning.latency_table import FragmentTable, LatencyTable, rising

DENSE = np.array([32, 64])
ALONE = FragmentTable((0,), ((8.0, 32.0),), np.array([2.0, 8.0]))
PAIR = FragmentTable((1, 0), ((16.0, 64.0), (8.0, 32.0)), np.array([[1.0, 4.0], [4.0, 16.0]]))
TABLE = LatencyTable((ALONE, PAIR), ((3.0, 5.0), (24.0, 30.0)), DENSE)


def widths(first: int, second: int) -> np.ndarray:
    return np.array([first, second])


def test_pair_is_interpolated_in_both_widths() -> None:
    # A product of widths is bilinear, so it is met exactly between the corners: 16 ms * w/32 * w/64.
    assert PAIR.value(widths(20, 40)) == pytest.approx(16 * 20 / 32 * 40 / 64)
    assert PAIR.along(0, widths=widths(32, 40), candidates=np.array([8, 20, 32])) == pytest.approx(
        [16 * width / 32 * 40 / 64 for width in (8, 20, 32)]
    )


@given(st.integers(8, 32), st.integers(16, 64))
def test_along_agrees_with_total_when_one_width_changes(first: int, second: int) -> None:
    for group, point in ((0, widths(first, 48)), (1, widths(24, second))):
        base = widths(24, 48)
        along = TABLE.along(group, widths=base, candidates=point[group : group + 1])
        assert along[0] == pytest.approx(TABLE.total(point))


def test_fragment_costs_nothing_when_its_block_is_gone() -> None:
    assert PAIR.value(widths(0, 64)) == 0
    assert TABLE.total(widths(32, 0)) == pytest.approx(8)
    assert PAIR.along(1, widths=widths(32, 64), candidates=np.array([0, 64])).tolist() == [0, 16]


def test_prediction_goes_through_what_the_whole_model_took() -> None:
    assert TABLE.total(DENSE) == 24
    assert TABLE.dense_ms == 30
    assert TABLE.predict(widths(8, 16)) == pytest.approx(5)
    assert TABLE.milliseconds(13.5) == pytest.approx(17.5)
    # Below what was timed the line goes on: 25 ms for 21 units of sum.
    assert TABLE.base_ms == pytest.approx(5 - 3 * 25 / 21)


@given(st.floats(2, 29.9))
def test_budget_is_the_inverse_of_the_prediction(milliseconds: float) -> None:
    assert TABLE.milliseconds(TABLE.budget(milliseconds)) == pytest.approx(milliseconds)


def test_corrected_table_predicts_what_was_measured() -> None:
    point = widths(16, 32)
    table = TABLE.corrected(point, measured_ms=20.0)
    assert table.predict(point) == pytest.approx(20)
    assert table.dense_ms == 30
    assert [total for total, _ in table.calibration] == sorted(total for total, _ in table.calibration)
    # Slower than a wider point was timed at: that one has to go, or the prediction would fall with the width.
    slower = table.corrected(widths(8, 16), measured_ms=25.0)
    assert slower.predict(widths(8, 16)) == pytest.approx(25)
    assert slower.predict(point) > 25


def test_milliseconds_by_width_leaves_the_other_groups_dense() -> None:
    times = TABLE.milliseconds_by_width(0, candidates=[8, 32])
    assert times.tolist() == pytest.approx([TABLE.predict(widths(8, 64)), 30])


def test_work_stands_for_the_widths_when_many_groups_meet() -> None:
    # A convolution with 10 outputs over the joined channels of three groups.
    joined = SizeProduct.of((AxisSize(0, {0: 1, 1: 1, 2: 1}), AxisSize(10, {})))
    dense = np.array([8, 8, 16])
    fragment = FragmentTable((0, 1, 2), ((80.0, 320.0),), np.array([1.0, 4.0]), FootprintCost([joined], dense=dense))
    assert fragment.value(np.array([4, 4, 8])) == pytest.approx(2)
    assert fragment.along(2, widths=dense, candidates=np.array([8, 16])) == pytest.approx([3, 4])


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12))
def test_rising_keeps_the_mean_and_never_falls(times: list[float]) -> None:
    fitted = rising(np.array(times))
    assert (np.diff(fitted) >= 0).all()
    assert fitted.mean() == pytest.approx(np.mean(times))


def test_rising_pools_neighbours_that_violate_the_order() -> None:
    assert rising(np.array([1.0, 3.0, 2.0, 4.0])).tolist() == [1, 2.5, 2.5, 4]


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), min_size=2, max_size=4))
def test_rising_holds_along_both_axes_of_a_grid(times: list[list[float]]) -> None:
    fitted = rising(np.array(times))
    assert all((np.diff(fitted, axis=axis) >= 0).all() for axis in (0, 1))
