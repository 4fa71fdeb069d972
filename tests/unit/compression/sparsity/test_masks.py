import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serveprune.compression.sparsity.masks import group_mask, layer_mask, output_mask, zeros_by_layer

SCORES = arrays.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.floats(0, 4, width=16))


@given(SCORES, st.data())
def test_layer_mask_leaves_out_as_many_as_asked_and_no_greater_one_for_a_smaller(scores, data) -> None:  # type: ignore[no-untyped-def]
    zeros = data.draw(st.integers(0, scores.size))
    kept = layer_mask(scores, zeros=zeros)
    assert (~kept).sum() == zeros
    if 0 < zeros < scores.size:
        assert scores[~kept].max() <= scores[kept].min()


@given(SCORES, st.data())
def test_output_mask_takes_the_least_of_each_row_and_rows_differ_by_one_at_most(scores, data) -> None:  # type: ignore[no-untyped-def]
    zeros = data.draw(st.integers(0, scores.size))
    kept = output_mask(scores, zeros=zeros)
    counts = (~kept).sum(axis=1)
    assert counts.sum() == zeros
    assert counts.max() - counts.min() <= 1
    for row, left in zip(scores, kept, strict=True):
        if left.any() and not left.all():
            assert row[~left].max() <= row[left].min()


@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 4), st.data())
def test_group_mask_leaves_exactly_n_of_every_m_neighbours(group: int, rows: int, groups: int, data) -> None:  # type: ignore[no-untyped-def]
    kept = data.draw(st.integers(1, group - 1))
    elements = st.floats(0, 2, width=16)
    scores = data.draw(arrays.arrays(np.float64, (rows, groups * group), elements=elements))
    mask = group_mask(scores, kept=kept, group=group)
    assert (mask.reshape(rows, groups, group).sum(axis=2) == kept).all()
    for line, left in zip(scores.reshape(-1, group), mask.reshape(-1, group), strict=True):
        assert line[~left].max() <= line[left].min()


def test_zeros_are_shared_out_by_one_threshold() -> None:
    scores = {"strong": np.array([[5.0, 6.0, 7.0, 1.0]]), "weak": np.array([[0.1, 0.2, 0.3, 8.0]])}
    assert zeros_by_layer(scores, sparsity=0.5) == {"strong": 1, "weak": 3}


def test_no_layer_loses_all_to_one_threshold_and_the_others_make_up_the_number() -> None:
    scores = {"large": np.arange(1.0, 301.0).reshape(3, 100), "tiny": np.full((1, 200), 1e-3)}
    shares = zeros_by_layer(scores, sparsity=0.5)
    assert shares == {"large": 52, "tiny": 198}


@given(st.lists(SCORES, min_size=1, max_size=4), st.floats(0.01, 0.98))
def test_zeros_of_all_layers_are_what_was_asked(layers, sparsity: float) -> None:  # type: ignore[no-untyped-def]
    scores = {str(index): layer for index, layer in enumerate(layers)}
    size = sum(layer.size for layer in layers)
    # Whole weights: a bound of 99 % of a layer of ten is nine.
    bound = sum(int(layer.size * max(sparsity, 0.99)) for layer in layers)
    assert sum(zeros_by_layer(scores, sparsity=sparsity).values()) == pytest.approx(min(round(sparsity * size), bound))
