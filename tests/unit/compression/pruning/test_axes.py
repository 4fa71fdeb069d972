import pytest

from serveprune.compression.pruning.axes import positions, reshape_runs


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        ((2, 5, 12), (2, 5, 3, 4), [([0], [0]), ([1], [1]), ([2], [2, 3])]),
        ((2, 3, 4, 4), (2, 48), [([0], [0]), ([1, 2, 3], [1])]),
        ((2, 5, 12), (10, 12), [([0, 1], [0]), ([2], [1])]),
        ((2, 6, 1, 1), (2, 6), [([0], [0]), ([1, 2, 3], [1])]),
        ((2, 6), (2, 1, 6, 1), [([0], [0, 1]), ([1], [2, 3])]),
        ((5, 2, 24), (5, 12, 4), [([0], [0]), ([1, 2], [1, 2])]),
    ],
)
def test_runs_are_the_smallest_that_hold_the_same_elements(
    before: tuple[int, ...], after: tuple[int, ...], runs: list[tuple[list[int], list[int]]]
) -> None:
    assert [(list(one), list(other)) for one, other in reshape_runs(before, after)] == runs


def test_positions_count_along_the_chosen_axis() -> None:
    assert positions((2, 3), 0).tolist() == [0, 0, 0, 1, 1, 1]
    assert positions((2, 3), 1).tolist() == [0, 1, 2, 0, 1, 2]
