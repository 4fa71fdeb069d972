import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serveprune.compression.pruning.units import RemovalUnits


def test_unit_is_pinned_when_a_joined_one_was_pinned_before() -> None:
    units = RemovalUnits()
    ids = units.fresh(4)
    units.pin(ids[3:], "reason")
    units.join(ids[:2], ids[2:])
    assert units.pinned(ids).tolist() == [False, True, False, True]
    assert units.pinned_because(1) == "reason"
    assert units.pinned_because(0) is None


def test_first_reason_stays_when_a_set_is_pinned_twice() -> None:
    units = RemovalUnits()
    ids = units.fresh(2)
    units.pin(ids, "first")
    units.pin(ids, "second")
    assert units.pinned_because(int(ids[1])) == "first"


def test_rows_are_joined_each_for_itself() -> None:
    units = RemovalUnits()
    ids = units.fresh(6)
    units.join_rows(ids.reshape(2, 3))
    assert units.roots(ids).tolist() == [0, 0, 0, 3, 3, 3]


@settings(max_examples=150, derandomize=True)
@given(
    joins=st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=8), max_size=5),
    pins=st.lists(st.integers(0, 11), max_size=3),
    pin_after=st.integers(0, 5),
)
def test_sets_are_the_connected_components_whatever_the_order(
    joins: list[list[tuple[int, int]]], pins: list[int], pin_after: int
) -> None:
    units = RemovalUnits()
    ids = units.fresh(12)
    for index, batch in enumerate([*joins, []]):
        if index == min(pin_after, len(joins)):
            units.pin(ids[pins], "kept")
        pairs = np.array(batch, np.int64).reshape(-1, 2)
        units.join(ids[pairs[:, 0]], ids[pairs[:, 1]])
    component = {unit: {unit} for unit in range(12)}
    for one, other in (pair for batch in joins for pair in batch):
        merged = component[one] | component[other]
        for unit in merged:
            component[unit] = merged
    roots = units.roots(ids)
    for one in range(12):
        assert {unit for unit in range(12) if roots[unit] == roots[one]} == component[one]
        assert bool(units.pinned(ids[one : one + 1])[0]) == bool(component[one] & set(pins))
