"""Attention as one operator: heads, or their dims, are a run of each projection's channels."""

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.compression.pruning.units import Ids
from serveprune.graph.node import attribute, given, integers, label, required


def attention(node: ir.Node, walk: Walk) -> list[Axes]:
    """``Attention`` of opset 23: ``(B, h, S, d)``, or ``(B, S, h d)`` with head counts as attributes; grouped too."""
    if _uses_cache(node, inputs=(4, 5), outputs=(1, 2, 3)):
        return walk.pinned(node, f"cache of {label(node)}")
    axes = [walk.of(required(node, slot)) for slot in range(3)]
    if len(axes[0]) == 4:
        return [_four_axes(node, axes, walk)]
    heads, shared = int(attribute(node, "q_num_heads", 1)), int(attribute(node, "kv_num_heads", 1))
    return [_three_axes(node, axes, heads, shared, given(node, 3), walk)]


def multi_head_attention(node: ir.Node, walk: Walk) -> list[Axes]:
    """``com.microsoft::MultiHeadAttention`` with three ``(B, S, h d)`` and an optional bias of all three."""
    packed = any(given(node, slot) is None or len(walk.of(given(node, slot))) != 3 for slot in range(3))
    if packed or _uses_cache(node, inputs=(6, 7, 8, 9), outputs=(1, 2, 3)):
        return walk.pinned(node, f"packed or cached {label(node)}")
    heads = int(attribute(node, "num_heads", 1))
    axes = [walk.of(node.inputs[slot]) for slot in range(3)]
    bias = walk.of(given(node, 3))
    start = 0
    for slot, own in enumerate(axes if bias else ()):
        size = walk.shape(node.inputs[slot])[2] or 0
        walk.couple(own[2], None if bias[0] is None else bias[0][start : start + size], f"bias of {label(node)}")
        start += size
    return [_three_axes(node, axes, heads, heads, given(node, 5), walk, whole_heads=bool(bias))]


def grouped_query_attention(node: ir.Node, walk: Walk) -> list[Axes]:
    """``com.microsoft::GroupQueryAttention`` without cache: ``(B, S, h d)`` and two ``(B, S, kv d)``."""
    if any(given(node, slot) is None for slot in range(3)) or _uses_cache(node, inputs=(3, 4), outputs=(1, 2)):
        return walk.pinned(node, f"packed or cached {label(node)}")
    axes = [walk.of(node.inputs[slot]) for slot in range(3)]
    for value in node.inputs[3:]:
        walk.keep(walk.of(value), f"setting of {label(node)}")
    heads, shared = int(attribute(node, "num_heads", 1)), int(attribute(node, "kv_num_heads", 1))
    return [_three_axes(node, axes, heads, shared, None, walk, whole_heads=True)]


def projecting_attention(node: ir.Node, walk: Walk) -> list[Axes]:
    """``com.microsoft::Attention``: ``(B, S, E)`` with weights ``(E, q + k + v)``; whole heads only."""
    weight = required(node, 1)
    data, kernel = walk.of(node.inputs[0]), walk.of(weight)
    if _uses_cache(node, inputs=(4,), outputs=(1,)) or weight.const_value is None or kernel[1] is None:
        return walk.pinned(node, f"cached or computed {label(node)}")
    reached = walk.couple(data[2], kernel[0], f"reaches a fixed axis in {label(node)}")
    walk.contract(node, slot=0, axis=2, ids=reached, weight=(weight, 0))
    projected: Ids | None = kernel[1]
    bias = given(node, 2)
    if bias is not None:
        projected = walk.couple(projected, walk.of(bias)[0], f"bias of {label(node)}")
    if projected is None:
        return walk.pinned(node, f"fixed bias of {label(node)}")
    heads = int(attribute(node, "num_heads", 1))
    sizes = integers(node, "qkv_hidden_sizes") or (len(projected) // 3,) * 3
    parts = np.split(projected, np.cumsum(sizes)[:2])
    axes: list[Axes] = [(data[0], data[1], part) for part in parts]
    return [_three_axes(node, axes, heads, heads, given(node, 5), walk, whole_heads=True)]


def rotary_embedding(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(B, h, S, d)``, or ``(B, S, h d)`` with a head count: dims turn in pairs, heads keep apart."""
    axes = walk.of(node.inputs[0])
    reason = f"turned in pairs by {label(node)}"
    for value in node.inputs[1:]:
        walk.keep(walk.of(value), reason)
    if len(axes) == 4:
        return [(*axes[:3], *walk.keep(axes[3:], reason))]
    heads, ids = int(attribute(node, "num_heads", 0)), axes[2]
    if ids is None or heads == 0 or walk.attention == "head_dims":
        return [(*axes[:2], *walk.keep(axes[2:], reason))]
    walk.units.join_rows(ids.reshape(heads, -1))
    return [axes]


def _uses_cache(node: ir.Node, *, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> bool:
    return any(given(node, slot) is not None for slot in inputs) or any(
        slot < len(node.outputs) and node.outputs[slot].name for slot in outputs
    )


def _four_axes(node: ir.Node, axes: list[Axes], walk: Walk) -> Axes:
    """Couple heads and dims that are axes of their own."""
    query, keys, values = axes
    for own in axes:
        walk.keep((own[0], own[2]), f"batch and sequence of {label(node)}")
    heads, reason = query[1], f"heads of {label(node)}"
    shared = walk.couple(keys[1], values[1], reason)
    if heads is not None and shared is not None:
        walk.units.join(heads, np.repeat(shared, len(heads) // len(shared)))
        walk.evidence.append((heads, "heads"))
    else:
        walk.keep((heads, shared), reason)
        heads = None
    _couple_mask(node, given(node, 3), heads, walk)
    reached = walk.couple(query[3], keys[3], f"dims of {label(node)}")
    walk.contract(node, slot=0, axis=3, ids=reached, weight=None)
    walk.evidence.extend((ids, "head_dims") for ids in (reached, values[3]) if ids is not None)
    return (None, heads, None, values[3])


def _three_axes(
    node: ir.Node,
    axes: list[Axes],
    heads: int,
    shared: int,
    mask: ir.Value | None,
    walk: Walk,
    *,
    whole_heads: bool = False,
) -> Axes:
    """Couple heads, or dims, that are runs of one channel axis; query heads that share keys go together."""
    for own in axes:
        walk.keep(own[:2], f"batch and sequence of {label(node)}")
    query, keys, values = (own[2] for own in axes)
    if walk.attention == "head_dims" and not whole_heads:
        _couple_mask(node, mask, None, walk)
        return (None, None, _couple_dims(node, query, keys, values, heads, shared, walk))
    if query is None or keys is None or values is None:
        walk.keep((query, keys, values), f"meets a fixed projection in {label(node)}")
        _couple_mask(node, mask, None, walk)
        return (None, None, None)
    rows = np.concatenate([part.reshape(shared, -1) for part in (query, keys, values)], axis=1)
    walk.units.join_rows(rows)
    walk.marks.append((rows[:, 0].copy(), "heads"))
    repeated = np.repeat(rows[:, 0], heads // shared)
    _couple_mask(node, mask, repeated, walk)
    return (None, None, np.repeat(repeated, len(values) // shared))


def _couple_dims(
    node: ir.Node, query: Ids | None, keys: Ids | None, values: Ids | None, heads: int, shared: int, walk: Walk
) -> Ids | None:
    """Couple the same dim of all heads; query and key dims meet each other, value dims make the output's."""
    if query is None or keys is None:
        walk.keep((query, keys), f"meets a fixed projection in {label(node)}")
    else:
        met = np.concatenate([query.reshape(heads, -1), keys.reshape(shared, -1)]).T
        walk.units.join_rows(met)
        walk.marks.append((met[:, 0].copy(), "head_dims"))
        walk.contract(node, slot=0, axis=2, ids=query, weight=None)
    if values is None:
        return None
    made = values.reshape(shared, -1).T
    walk.units.join_rows(made)
    walk.marks.append((made[:, 0].copy(), "head_dims"))
    return np.tile(made[:, 0], heads)


def _couple_mask(node: ir.Node, mask: ir.Value | None, heads: Ids | None, walk: Walk) -> None:
    """Couple the heads of a mask or bias ``(..., h, S, S)``, if it has any."""
    axes, shape = walk.of(mask), walk.shape(mask)
    reason = f"mask of {label(node)}"
    for position, ids in enumerate(axes):
        if position == len(axes) - 3 and shape[position] != 1:
            walk.couple(ids, heads, reason)
        else:
            walk.pin(ids, reason)


RULES: dict[str, Rule] = {
    "Attention": attention,
    "RotaryEmbedding": rotary_embedding,
    "com.microsoft::Attention": projecting_attention,
    "com.microsoft::MultiHeadAttention": multi_head_attention,
    "com.microsoft::GroupQueryAttention": grouped_query_attention,
    "com.microsoft::RotaryEmbedding": rotary_embedding,
}
