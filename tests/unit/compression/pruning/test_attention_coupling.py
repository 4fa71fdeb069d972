from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from unit.compression.pruning.attention_networks import (
    AS_OPERATOR,
    WRITTEN_OUT,
    Attention,
    batch_of_heads,
    few_heads,
    fused_inner,
    fused_outer,
    fused_slice,
    fused_split,
    grouped_query,
    multi_head,
    multi_head_plain,
    operator_four_axes,
    operator_grouped,
    operator_three_axes,
    projecting,
    rotated,
    rotated_multi_head,
    separate,
)
from unit.compression.pruning.networks import Network, Trial, prune

Part = Literal["heads", "head_dims"]
Groups = frozenset[tuple[int, frozenset[tuple[str, int]]]]
QKVO = frozenset({("q", 1), ("k", 1), ("v", 1), ("o", 0)})
FUSED = frozenset({("qkv", 1), ("o", 0)})
HEADS: dict[Attention, Groups] = {
    separate: frozenset({(6, QKVO)}),
    few_heads: frozenset({(3, QKVO)}),
    batch_of_heads: frozenset({(6, QKVO)}),
    grouped_query: frozenset({(3, QKVO)}),
    operator_three_axes: frozenset({(6, QKVO)}),
    operator_grouped: frozenset({(3, QKVO)}),
    operator_four_axes: frozenset({(6, QKVO)}),
    multi_head: frozenset({(6, QKVO)}),
    multi_head_plain: frozenset({(6, QKVO)}),
    rotated: frozenset({(6, QKVO)}),
    rotated_multi_head: frozenset({(6, QKVO)}),
    **dict.fromkeys((fused_outer, fused_inner, fused_split, fused_slice, projecting), frozenset({(6, FUSED)})),
}
QK, VO = frozenset({("q", 1), ("k", 1)}), frozenset({("v", 1), ("o", 0)})
DIMS: dict[Attention, Groups] = {
    few_heads: frozenset({(8, QK), (8, VO)}),
    **dict.fromkeys(
        (separate, batch_of_heads, grouped_query, operator_three_axes, operator_four_axes, multi_head_plain),
        frozenset({(4, QK), (4, VO)}),
    ),
    operator_grouped: frozenset({(4, QK), (4, VO)}),
    # The dims of all three go together where one axis holds them,
    **dict.fromkeys((fused_outer, fused_inner), frozenset({(4, FUSED)})),
    # and apart where the channels are cut first.
    **dict.fromkeys((fused_split, fused_slice), frozenset({(4, frozenset({("qkv", 1)})), (4, FUSED)})),
    # Dims of queries and keys that are turned in pairs stay.
    **dict.fromkeys((rotated, rotated_multi_head), frozenset({(4, VO)})),
    # An operator that adds a bias or projects itself can only lose whole heads.
    multi_head: frozenset({(6, QKVO)}),
    projecting: frozenset({(6, FUSED)}),
}


def pruned(attention: Attention, part: Part, folder: Path) -> Trial:
    network = Network(opset=23)
    x = network.input("N", "S", 5)
    path = network.save(folder / "network.onnx", network.node("Add", x, attention(network, x, 5, tag="")))
    return prune(path, workspace=folder, attention=part, share=0.5)


@pytest.mark.parametrize("attention", [*WRITTEN_OUT, *AS_OPERATOR], ids=lambda function: function.__name__)
@pytest.mark.parametrize("part", ["heads", "head_dims"])
def test_attention_loses_heads_or_dims_when_asked(attention: Attention, part: Part, tmp_path: Path) -> None:
    trial = pruned(attention, part, tmp_path)
    assert trial.groups == (HEADS if part == "heads" else DIMS)[attention]
    assert trial.after["o"][0] < trial.before["o"][0]
    kinds = {group.kind for group in trial.graph.groups}
    assert kinds == {"heads" if part == "heads" or attention in (multi_head, projecting) else "head_dims"}


def test_bias_of_every_head_goes_with_its_head(tmp_path: Path) -> None:
    n = Network(opset=23)
    x = n.input(2, 4, 5)
    parts = [n.linear(x, 5, 24, name=part) for part in "qkv"]
    made = n.node("Attention", *parts, n.weight(1, 6, 4, 4, name="heads"), q_num_heads=6, kv_num_heads=6)
    trial = prune(n.save(tmp_path / "network.onnx", n.linear(made, 24, 3, name="o")), workspace=tmp_path)
    assert trial.groups == {(6, QKVO | {("heads", 1)})}


def test_grouped_query_operator_loses_whole_groups(tmp_path: Path) -> None:
    n = Network(opset=23)
    x = n.input(2, 7, 5)
    parts = [n.linear(x, 5, width, name=name) for name, width in (("q", 48), ("k", 24), ("v", 24))]
    lengths = n.constant(np.array([6, 6], np.int32)), n.constant(np.array(7, np.int32))
    attributes = {"num_heads": 6, "kv_num_heads": 3}
    made = n.node("GroupQueryAttention", *parts, "", "", *lengths, domain="com.microsoft", **attributes)
    trial = prune(n.save(tmp_path / "network.onnx", n.linear(made, 48, 3, name="o")), workspace=tmp_path)
    assert trial.groups == {(3, QKVO)}


@pytest.mark.parametrize(
    ("attention", "counts"),
    [
        (operator_three_axes, {"q_num_heads": 3, "kv_num_heads": 3}),
        (operator_grouped, {"q_num_heads": 2, "kv_num_heads": 1}),
        (multi_head, {"num_heads": 3}),
        (projecting, {"num_heads": 3}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_head_counts_are_patched_when_heads_go(attention: Attention, counts: dict[str, int], tmp_path: Path) -> None:
    trial = pruned(attention, "heads", tmp_path)
    (node,) = (node for node in trial.small.graph if "Attention" in node.op_type)
    assert {name: node.attributes[name].value for name in counts} == counts


@pytest.mark.parametrize("attention", [operator_three_axes, operator_four_axes, multi_head_plain])
def test_scale_stays_that_of_all_dims_when_dims_go(attention: Attention, tmp_path: Path) -> None:
    trial = pruned(attention, "head_dims", tmp_path)
    (node,) = (node for node in trial.small.graph if "Attention" in node.op_type)
    assert node.attributes["scale"].as_float() == pytest.approx(4**-0.5)
