import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.scheduling.padding import Padding, cut, stack


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=6),
    st.integers(0, 2),
    st.sampled_from((0, 7)),
    st.sampled_from((np.int64, np.float32)),
)
def test_rows_are_stacked_and_cut_back_unchanged(
    sizes: list[tuple[int, int]], more: int, value: int, dtype: type[np.generic]
) -> None:
    arrays = [np.arange(rows * length * 2).reshape(rows, length, 2).astype(dtype) + 1 for rows, length in sizes]
    longest = max(length for _, length in sizes) + more
    joined = stack(arrays, length=longest, value=value)
    assert (joined.shape, joined.dtype) == ((sum(rows for rows, _ in sizes), longest, 2), np.dtype(dtype))
    start = 0
    for array in arrays:
        mine = joined[start : start + len(array)]
        np.testing.assert_array_equal(cut(mine, array.shape[1]), array)
        assert (mine[:, array.shape[1] :] == value).all()
        start += len(array)


def test_rows_without_a_length_are_stacked() -> None:
    assert stack([np.zeros(2), np.ones(1)]).tolist() == [0, 0, 1]


def test_input_is_not_changed_when_it_is_stacked_alone() -> None:
    array = np.ones((1, 2))
    stack([array], length=2)[:] = 5
    assert array.tolist() == [[1, 1]]


@pytest.mark.parametrize(("other", "length"), [(4, 4), (5, None)])
def test_length_of_rows_is_that_of_all_padded_inputs(other: int, length: int | None) -> None:
    padding = Padding({"ids": 0, "mask": 0}, frozenset())
    feeds = {"ids": np.zeros((2, 4)), "mask": np.zeros((2, other)), "bias": np.zeros((2, 9))}
    assert padding.length_of(feeds) == length
