import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serveprune.compression.lottery.masks import full_masks, removed, sparser
from serveprune.config.lottery import LotteryOptions


def test_sparser_removes_the_smallest_of_all_layers_when_the_scope_is_global() -> None:
    weights = {"a": torch.tensor([[1.0, -0.1], [0.3, 2.0]]), "b": torch.tensor([[-5.0, 0.2]])}
    masks = sparser(weights, full_masks(weights), sparsity=0.5, scope="global")
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [[True, False]]


def test_sparser_removes_the_same_part_of_every_layer_when_the_scope_is_layer() -> None:
    weights = {"a": torch.tensor([[1.0, -0.1], [0.3, 2.0]]), "b": torch.tensor([[50.0, 40.0]])}
    masks = sparser(weights, full_masks(weights), sparsity=0.5, scope="layer")
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [[True, False]]


def test_sparser_removes_an_exact_number_when_all_weights_are_equal() -> None:
    weights = {"a": torch.ones(10, 10), "b": torch.ones(7, 3)}
    for sparsity in (0.0, 0.1, 0.333, 0.9):
        masks = sparser(weights, full_masks(weights), sparsity=sparsity, scope="global")
        assert removed(masks) == round(sparsity * 121)


def test_sparser_keeps_removed_what_was_removed_when_it_has_become_large() -> None:
    weights = {"a": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    first = sparser(weights, full_masks(weights), sparsity=0.25, scope="global")
    grown = {"a": torch.tensor([[9.0, 2.0, 3.0, 4.0]])}
    second = sparser(grown, first, sparsity=0.5, scope="global")
    assert second["a"].tolist() == [[False, False, True, True]]
    assert sparser(grown, second, sparsity=0.25, scope="global")["a"].tolist() == second["a"].tolist()


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    sparsities=st.lists(st.floats(0, 0.99), min_size=1, max_size=4).map(sorted),
    scope=st.sampled_from(["global", "layer"]),
    seed=st.integers(0, 999),
)
def test_sparser_nests_masks_and_counts_exactly_whatever_the_weights(
    sizes: list[int], sparsities: list[float], scope: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    names = [f"w{index}" for index in range(len(sizes))]
    masks = full_masks({name: torch.ones(2, size) for name, size in zip(names, sizes, strict=True)})
    for sparsity in sparsities:
        weights = {name: torch.randn(mask.shape, generator=generator) for name, mask in masks.items()}
        found = sparser(weights, masks, sparsity=sparsity, scope=scope)  # type: ignore[arg-type]
        assert all(not bool((found[name] & ~masks[name]).any()) for name in names)
        counts = [mask.numel() for mask in found.values()]
        wanted = round(sparsity * sum(counts)) if scope == "global" else sum(round(sparsity * each) for each in counts)
        assert removed(found) == wanted
        left = [weights[name][found[name]].abs() for name in names]
        gone = [weights[name][masks[name] & ~found[name]].abs() for name in names]
        if scope == "global" and torch.cat(gone).numel() and torch.cat(left).numel():
            assert torch.cat(gone).max() <= torch.cat(left).min()
        masks = found


def test_sparsities_remove_the_same_part_of_what_is_left_in_every_round() -> None:
    assert LotteryOptions(rounds=3, rate=0.2).sparsities == pytest.approx((0.2, 0.36, 0.488))
    assert LotteryOptions(rounds=4, sparsity=0.96).sparsities == pytest.approx((0.5528, 0.8, 0.9106, 0.96), abs=1e-4)
