import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.scheduling.latency_table import LatencyTable

POINTS = st.dictionaries(
    st.tuples(st.sampled_from((1, 2, 4, 8, 16, 32)), st.sampled_from((8, 32, 128, 512))),
    st.floats(1e-5, 2.0),
    min_size=1,
)


@given(st.sets(st.sampled_from((1, 2, 4, 8, 16, 32)), min_size=1), st.sampled_from((8, 32)), st.data())
def test_seconds_are_exact_where_they_were_measured(rows: set[int], length: int, data: st.DataObject) -> None:
    ascending = sorted(data.draw(st.lists(st.floats(1e-5, 2.0), min_size=len(rows), max_size=len(rows))))
    measured = {(count, length): seconds for count, seconds in zip(sorted(rows), ascending, strict=True)}
    table = LatencyTable(measured)
    assert {size: table.seconds(*size) for size in measured} == pytest.approx(measured)


@given(POINTS, st.integers(1, 100), st.integers(1, 100), st.integers(1, 1000))
def test_more_rows_never_take_less(points: dict[tuple[int, int], float], first: int, second: int, length: int) -> None:
    table = LatencyTable(points)
    fewer, more = sorted((first, second))
    assert 0 <= table.seconds(fewer, length) <= table.seconds(more, length) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [
        (3, 8, 0.03),  # between two measured rows
        (16, 8, 0.13),  # beyond them, as the last two go on
        (2, 16, 0.02 + (0.08 - 0.02) * 8 / 24),  # between two measured lengths
        (2, 64, 0.16),  # beyond them, by elements
        (2, 4, 0.02),  # below them, no less than the shortest
    ],
)
def test_seconds_follow_from_the_nearest_points(rows: int, length: int, expected: float) -> None:
    table = LatencyTable(
        {(1, 8): 0.01, (2, 8): 0.02, (4, 8): 0.04, (8, 8): 0.07, (16, 8): 0.13, (1, 32): 0.05, (2, 32): 0.08}
    )
    assert table.seconds(rows, length) == pytest.approx(expected)


def test_rows_beyond_the_last_go_on_as_the_last_two_points() -> None:
    assert LatencyTable({(1, 8): 0.5, (4, 8): 1.0, (8, 8): 1.4}).seconds(16, 8) == pytest.approx(2.2)


def test_one_point_is_scaled_by_rows_and_length() -> None:
    table = LatencyTable({(2, 10): 0.2})
    assert table.seconds(6, 5) == pytest.approx(0.3)


def test_noise_that_says_that_more_rows_take_less_is_smoothed() -> None:
    table = LatencyTable({(1, 8): 0.1, (2, 8): 0.3, (4, 8): 0.2})
    assert table.seconds(4, 8) == table.seconds(3, 8) == 0.3


def test_nothing_takes_any_time_where_nothing_was_measured() -> None:
    table = LatencyTable({})
    assert (table.seconds(9, 99), table.worthwhile_rows(9), table.quick_rows(9, seconds=1)) == (0.0, 1, 1)
    assert (table.lengths, table.length_near(5), table.rows(5)) == ((), 1, ())


@pytest.mark.parametrize(
    ("measured", "worthwhile"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0}, 1),  # a row costs the same in any batch
        ({1: 1.0, 2: 1.1, 4: 1.3}, 4),
        ({1: 1.0, 2: 1.3, 4: 2.3, 8: 4.5}, 4),  # 8 is better by less than a twentieth
        ({1: 1e-5, 2: 2e-5, 4: 4e-5, 64: 64e-5}, 64),  # what a run costs beside its compute counts
    ],
)
def test_batches_are_as_large_as_it_pays(measured: dict[int, float], worthwhile: int) -> None:
    table = LatencyTable({(rows, 8): seconds for rows, seconds in measured.items()})
    assert [table.worthwhile_rows(length) for length in (1, 8, 100)] == [worthwhile] * 3


def test_worthwhile_rows_are_those_of_the_next_longer_length() -> None:
    table = LatencyTable({(1, 8): 1.0, (2, 8): 1.0, (1, 32): 1.0, (2, 32): 2.0})
    assert [table.worthwhile_rows(length) for length in (8, 9, 32, 99)] == [2, 1, 1, 1]


def test_quick_rows_are_those_measured_to_take_no_longer() -> None:
    table = LatencyTable({(1, 8): 0.1, (4, 8): 0.2, (8, 8): 0.9})
    assert [table.quick_rows(8, seconds=seconds) for seconds in (0.01, 0.1, 0.5, 5)] == [1, 1, 4, 8]


def test_measured_sizes_are_told_as_they_are() -> None:
    measured = {(1, 32): 0.1, (4, 8): 0.2, (1, 8): 0.05}
    table = LatencyTable(measured)
    assert (table.measured, table.lengths, table.rows(8)) == (measured, (8, 32), (1, 4))
    assert [table.length_near(length) for length in (1, 19, 21, 999)] == [8, 8, 32, 32]
