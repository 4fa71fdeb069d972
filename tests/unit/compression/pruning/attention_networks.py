"""Self-attention over ``(N, S, channels)``, written in every way that exporters write it."""

from collections.abc import Callable

import numpy as np
from unit.compression.pruning.networks import Network

HEADS, DIMS = 6, 4
CHANNELS = HEADS * DIMS


def _split_heads(n: Network, x: str, heads: int, dims: int) -> str:
    parts = n.node("Reshape", x, n.integers(0, 0, heads, dims))
    made: str = n.node("Transpose", parts, perm=[0, 2, 1, 3])
    return made


def _attend(n: Network, channels: int, *parts: str) -> str:
    """``(N, h, S, d)`` three times to ``(N, S, h d)``."""
    query, keys, values = parts
    scores = n.node("MatMul", query, n.node("Transpose", keys, perm=[0, 1, 3, 2]))
    weights = n.node("Softmax", n.node("Mul", scores, n.constant(np.float32(0.5))))
    joined = n.node("Transpose", n.node("MatMul", weights, values), perm=[0, 2, 1, 3])
    made: str = n.node("Reshape", joined, n.integers(0, 0, channels))
    return made


def separate(n: Network, x: str, width: int, *, tag: str) -> str:
    """Three projections."""
    parts = [
        _split_heads(n, n.linear(x, width, CHANNELS, name=f"{tag}{part}"), HEADS, DIMS) for part in ("q", "k", "v")
    ]
    return n.linear(_attend(n, CHANNELS, *parts), CHANNELS, width, name=f"{tag}o")


def few_heads(n: Network, x: str, width: int, *, tag: str) -> str:
    """Fewer heads than dims of each."""
    parts = [_split_heads(n, n.linear(x, width, 24, name=f"{tag}{part}"), 3, 8) for part in ("q", "k", "v")]
    return n.linear(_attend(n, 24, *parts), 24, width, name=f"{tag}o")


def batch_of_heads(n: Network, x: str, width: int, *, tag: str) -> str:
    """Batch and heads as one axis, which is of dynamic size."""

    def heads_first(name: str) -> str:
        rows = n.node("Transpose", n.linear(x, width, CHANNELS, name=name), perm=[1, 0, 2])
        sequence = n.node("Slice", n.node("Shape", rows), n.integers(0), n.integers(1))
        merged = n.node("Mul", n.node("Slice", n.node("Shape", rows), n.integers(1), n.integers(2)), n.integers(HEADS))
        shape = n.node("Concat", sequence, merged, n.integers(DIMS), axis=0)
        made: str = n.node("Transpose", n.node("Reshape", rows, shape), perm=[1, 0, 2])
        return made

    query, keys, values = (heads_first(f"{tag}{part}") for part in ("q", "k", "v"))
    weights = n.node("Softmax", n.node("MatMul", query, n.node("Transpose", keys, perm=[0, 2, 1])))
    rows = n.node("Transpose", n.node("MatMul", weights, values), perm=[1, 0, 2])
    joined = n.node("Reshape", rows, n.integers(0, -1, CHANNELS))
    made: str = n.node("Transpose", joined, perm=[1, 0, 2])
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


def grouped_query(n: Network, x: str, width: int, *, tag: str) -> str:
    """Six query heads share three key and value heads, repeated by Expand."""
    query = _split_heads(n, n.linear(x, width, CHANNELS, name=f"{tag}q"), HEADS, DIMS)
    shared = []
    for part in ("k", "v"):
        heads = _split_heads(n, n.linear(x, width, 3 * DIMS, name=f"{tag}{part}"), 3, DIMS)
        wide = n.node("Expand", n.node("Unsqueeze", heads, n.integers(2)), n.integers(1, 3, 2, 1, DIMS))
        sizes = n.node("Shape", query)
        shared.append(n.node("Reshape", wide, sizes))
    return n.linear(_attend(n, CHANNELS, query, *shared), CHANNELS, width, name=f"{tag}o")


def fused_outer(n: Network, x: str, width: int, *, tag: str) -> str:
    """One projection to ``(3, h, d)``, taken apart by Gather."""
    parts = n.node("Reshape", n.linear(x, width, 3 * CHANNELS, name=f"{tag}qkv"), n.integers(0, 0, 3, HEADS, DIMS))
    stacked = n.node("Transpose", parts, perm=[2, 0, 3, 1, 4])
    taken = [n.node("Gather", stacked, n.constant(np.int64(index)), axis=0) for index in range(3)]
    return n.linear(_attend(n, CHANNELS, *taken), CHANNELS, width, name=f"{tag}o")


def fused_inner(n: Network, x: str, width: int, *, tag: str) -> str:
    """One projection to ``(h, 3, d)``, taken apart by Split and Squeeze."""
    parts = n.node("Reshape", n.linear(x, width, 3 * CHANNELS, name=f"{tag}qkv"), n.integers(0, 0, HEADS, 3, DIMS))
    taken = [
        n.node("Transpose", n.node("Squeeze", part, n.integers(3)), perm=[0, 2, 1, 3])
        for part in n.node("Split", parts, outputs=3, axis=3, num_outputs=3)
    ]
    return n.linear(_attend(n, CHANNELS, *taken), CHANNELS, width, name=f"{tag}o")


def fused_split(n: Network, x: str, width: int, *, tag: str) -> str:
    """One projection, whose channels Split cuts in three."""
    projected = n.linear(x, width, 3 * CHANNELS, name=f"{tag}qkv")
    parts = n.node("Split", projected, n.integers(CHANNELS, CHANNELS, CHANNELS), outputs=3, axis=-1)
    heads = [_split_heads(n, part, HEADS, DIMS) for part in parts]
    return n.linear(_attend(n, CHANNELS, *heads), CHANNELS, width, name=f"{tag}o")


def fused_slice(n: Network, x: str, width: int, *, tag: str) -> str:
    """One projection, whose channels Slice cuts in three."""
    projected = n.linear(x, width, 3 * CHANNELS, name=f"{tag}qkv")
    cuts = [(0, CHANNELS), (-2 * CHANNELS, -CHANNELS), (2 * CHANNELS, 2**40)]
    parts = [n.node("Slice", projected, n.integers(a), n.integers(b), n.integers(2)) for a, b in cuts]
    heads = [_split_heads(n, part, HEADS, DIMS) for part in parts]
    return n.linear(_attend(n, CHANNELS, *heads), CHANNELS, width, name=f"{tag}o")


def operator_three_axes(n: Network, x: str, width: int, *, tag: str) -> str:
    """Attention of opset 23 on ``(N, S, channels)``."""
    parts = [n.linear(x, width, CHANNELS, name=f"{tag}{part}") for part in ("q", "k", "v")]
    made = n.node("Attention", *parts, q_num_heads=HEADS, kv_num_heads=HEADS)
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


def operator_grouped(n: Network, x: str, width: int, *, tag: str) -> str:
    """Attention of opset 23, six query heads and three key and value heads."""
    query = n.linear(x, width, CHANNELS, name=f"{tag}q")
    keys, values = (n.linear(x, width, 3 * DIMS, name=f"{tag}{part}") for part in ("k", "v"))
    made = n.node("Attention", query, keys, values, q_num_heads=HEADS, kv_num_heads=3)
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


def operator_four_axes(n: Network, x: str, width: int, *, tag: str) -> str:
    """Attention of opset 23 on ``(N, h, S, d)``, with a bias for every head."""
    parts = [
        _split_heads(n, n.linear(x, width, CHANNELS, name=f"{tag}{part}"), HEADS, DIMS) for part in ("q", "k", "v")
    ]
    rows = n.node("Transpose", n.node("Attention", *parts), perm=[0, 2, 1, 3])
    return n.linear(n.node("Reshape", rows, n.integers(0, 0, CHANNELS)), CHANNELS, width, name=f"{tag}o")


def multi_head(n: Network, x: str, width: int, *, tag: str) -> str:
    """``com.microsoft::MultiHeadAttention`` with one bias for all three."""
    parts = [n.linear(x, width, CHANNELS, name=f"{tag}{part}", bias=False) for part in ("q", "k", "v")]
    bias = n.weight(3 * CHANNELS)
    made = n.node("MultiHeadAttention", *parts, bias, domain="com.microsoft", num_heads=HEADS)
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


def multi_head_plain(n: Network, x: str, width: int, *, tag: str) -> str:
    """``com.microsoft::MultiHeadAttention`` without bias."""
    parts = [n.linear(x, width, CHANNELS, name=f"{tag}{part}") for part in ("q", "k", "v")]
    made = n.node("MultiHeadAttention", *parts, domain="com.microsoft", num_heads=HEADS)
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


def projecting(n: Network, x: str, width: int, *, tag: str) -> str:
    """``com.microsoft::Attention``, which holds its projections."""
    weights = n.weight(width, 3 * CHANNELS, name=f"{tag}qkv"), n.weight(3 * CHANNELS)
    sizes = [CHANNELS] * 3
    made = n.node("Attention", x, *weights, domain="com.microsoft", num_heads=HEADS, qkv_hidden_sizes=sizes)
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


def _turning(n: Network) -> tuple[str, str]:
    angles = np.arange(64 * DIMS // 2, dtype=np.float32).reshape(64, DIMS // 2) / 7
    return n.constant(np.cos(angles)), n.constant(np.sin(angles))


def rotated(n: Network, x: str, width: int, *, tag: str) -> str:
    """Attention and RotaryEmbedding of opset 23."""
    parts = [n.linear(x, width, CHANNELS, name=f"{tag}{part}") for part in ("q", "k", "v")]
    rows = n.node("Slice", n.node("Shape", x), n.integers(0), n.integers(2))
    count = n.node("Squeeze", n.node("Slice", rows, n.integers(1), n.integers(2)), n.integers(0))
    places = n.node("Range", n.constant(np.int64(0)), count, n.constant(np.int64(1)))
    places = n.node("Expand", n.node("Unsqueeze", places, n.integers(0)), rows)
    turned = [n.node("RotaryEmbedding", part, *_turning(n), places, num_heads=HEADS) for part in parts[:2]]
    made = n.node("Attention", *turned, parts[2], q_num_heads=HEADS, kv_num_heads=HEADS)
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


def rotated_multi_head(n: Network, x: str, width: int, *, tag: str) -> str:
    """``com.microsoft::RotaryEmbedding`` and ``com.microsoft::MultiHeadAttention``."""
    parts = [n.linear(x, width, CHANNELS, name=f"{tag}{part}") for part in ("q", "k", "v")]
    start = n.constant(np.array([0], np.int64))
    domain = "com.microsoft"
    parts[0] = n.node("RotaryEmbedding", parts[0], start, *_turning(n), domain=domain, num_heads=HEADS)
    made = n.node("MultiHeadAttention", *parts, domain=domain, num_heads=HEADS)
    return n.linear(made, CHANNELS, width, name=f"{tag}o")


Attention = Callable[..., str]
WRITTEN_OUT: tuple[Attention, ...] = (
    *(separate, few_heads, batch_of_heads, grouped_query, fused_outer, fused_inner, fused_split, fused_slice),
)
AS_OPERATOR: tuple[Attention, ...] = (
    *(operator_three_axes, operator_grouped, operator_four_axes, multi_head, multi_head_plain, projecting),
    *(rotated, rotated_multi_head),
)
