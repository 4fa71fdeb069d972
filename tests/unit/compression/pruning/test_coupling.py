"""One row per operator: a tiny graph, and which weight axes must go together in it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from unit.compression.pruning.networks import Network, prune

Attention = Literal["heads", "head_dims"]
Group = tuple[int, set[tuple[str, int]]]


@dataclass(frozen=True, slots=True)
class Row:
    """An operator in a graph, and the groups it must give: width and named weight axes."""

    operator: str
    build: Callable[[Network], str]
    groups: list[Group]
    opset: int = 18
    attention: Attention = "heads"


def _images(network: Network, middle: Callable[[str], str], *, made: int = 8, read: int = 8) -> str:
    """A Conv named ``a``, something, and a head named ``head`` with the channels that it gives."""
    x = network.input("N", 3, 8, 8)
    return network.pooled_head(middle(network.conv(x, 3, made, name="a")), read)


def _rows(network: Network, middle: Callable[[str], str], *, made: int = 8, read: int = 8) -> str:
    """A Linear named ``a`` on ``(N, S, 4)``, something, and a Linear named ``b``."""
    x = network.input("N", "S", 4)
    return network.linear(middle(network.linear(x, 4, made, name="a")), read, 3, name="b", bias=False)


A_TO_B: list[Group] = [(8, {("a", 1), ("b", 0)})]
A_TO_HEAD: list[Group] = [(8, {("a", 0), ("head", 1)})]
ROWS: list[Row] = []


def row(
    operator: str, groups: list[Group], *, opset: int = 18, attention: Attention = "heads"
) -> Callable[[Callable[[Network], str]], Callable[[Network], str]]:
    def enter(build: Callable[[Network], str]) -> Callable[[Network], str]:
        ROWS.append(Row(operator, build, groups, opset, attention))
        return build

    return enter


for _name in (
    *("Relu", "Clip", "Erf", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Softplus", "Mish"),
    *("Identity", "Neg", "Exp", "Softsign", "Selu", "ThresholdedRelu"),
):
    ROWS.append(Row(_name, lambda n, name=_name: _rows(n, lambda x: n.node(name, x)), A_TO_B))  # type: ignore[misc]
ROWS.append(Row("Gelu", lambda n: _rows(n, lambda x: n.node("Gelu", x)), A_TO_B, opset=20))
for _name in ("QuickGelu", "Gelu", "FastGelu"):
    ROWS.append(
        Row(
            f"com.microsoft::{_name}",
            lambda n, name=_name: _rows(n, lambda x: n.node(name, x, domain="com.microsoft")),  # type: ignore[misc]
            A_TO_B,
        )
    )
for _name in ("BiasGelu", "FastGelu"):
    ROWS.append(
        Row(
            f"com.microsoft::{_name} with bias",
            lambda n, name=_name: _rows(  # type: ignore[misc]
                n, lambda x: n.node(name, x, n.weight(8, name="c"), domain="com.microsoft")
            ),
            [(8, {("a", 1), ("c", 0), ("b", 0)})],
        )
    )
for _name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"):
    ROWS.append(
        Row(
            f"{_name} with a constant",
            lambda n, name=_name: _rows(n, lambda x: n.node(name, x, n.weight(8, name="c"))),  # type: ignore[misc]
            [(8, {("a", 1), ("c", 0), ("b", 0)})],
        )
    )


@row("Cast", A_TO_B)
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Cast", n.node("Cast", x, to=11), to=1))


@row("Add of two layers", [(8, {("a", 1), ("c", 1), ("b", 0)})])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Add", x, n.linear("x", 4, 8, name="c")))


@row("Mul by a gate that is broadcast", [(8, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Mul", x, n.node("Sigmoid", n.linear("x", 4, 1, name="c"))))


@row("Where masks rows", A_TO_B)
def _(n: Network) -> str:
    def masked(x: str) -> str:
        condition = n.node("Greater", n.node("ReduceSum", "x", n.integers(-1)), n.constant(np.float32(0)))
        made: str = n.node("Where", condition, x, n.constant(np.float32(-1)))
        return made

    return _rows(n, masked)


@row("Where with a constant mask of channels", [(8, {("a", 1), ("mask", 0), ("other", 0), ("b", 0)})])
def _(n: Network) -> str:
    mask = n.constant(np.arange(8) % 3 == 0, name="mask")
    return _rows(n, lambda x: n.node("Where", mask, x, n.weight(8, name="other")))


@row("Where on a comparison of channels", A_TO_B)
def _(n: Network) -> str:
    zero = n.constant(np.float32(0))
    return _rows(n, lambda x: n.node("Where", n.node("Greater", x, zero), x, n.node("Neg", x)))


@row("Conv", [(8, {("a", 0), ("c", 1)}), (6, {("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.conv(x, 8, 6, name="c"), read=6)


@row("Conv depthwise", [(8, {("a", 0), ("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.conv(x, 8, 8, name="c", group=8))


@row("Conv depthwise with multiplier", [(8, {("a", 0), ("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.conv(x, 8, 16, name="c", group=8), read=16)


@row("Conv in few groups", [(4, {("a", 0), ("c", 1)}), (3, {("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.conv(x, 8, 6, name="c", group=2), read=6)


@row("Conv in many groups", [(6, {("a", 0), ("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.conv(x, 12, 18, name="c", group=6), made=12, read=18)


@row("Conv depthwise on the input", [])
def _(n: Network) -> str:
    return n.pooled_head(n.conv(n.input("N", 3, 8, 8), 3, 3, name="a", group=3), 3)


@row("FusedConv with an added value", [(8, {("a", 0), ("c", 1), ("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(
        n,
        lambda x: n.node(
            *("FusedConv", x, n.weight(8, 8, 1, 1, name="c"), n.weight(8), x),
            domain="com.microsoft",
            activation="Relu",
        ),
    )


@row("ConvTranspose", [(8, {("a", 0), ("c", 0)}), (6, {("c", 1), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("ConvTranspose", x, n.weight(8, 6, 2, 2, name="c"), n.weight(6)), read=6)


@row("ConvTranspose in few groups", [(4, {("a", 0), ("c", 0)}), (3, {("c", 1), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("ConvTranspose", x, n.weight(8, 3, 2, 2, name="c"), group=2), read=6)


@row("ConvTranspose depthwise", [(8, {("a", 0), ("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("ConvTranspose", x, n.weight(8, 1, 2, 2, name="c"), n.weight(8), group=8))


@row("Gemm", [(8, {("a", 0), ("b", 0)}), (5, {("b", 1), ("c", 1)})])
def _(n: Network) -> str:
    x = n.gemm(n.input("N", 4), 4, 8, name="a")
    x = n.node("Gemm", x, n.weight(8, 5, name="b"), n.weight(1, 5))
    return n.gemm(n.node("Relu", x), 5, 2, name="c")


@row("Gemm with transposed rows", [(8, {("a", 0), ("b", 0)})])
def _(n: Network) -> str:
    x = n.node("Transpose", n.gemm(n.input("N", 4), 4, 8, name="a"), perm=[1, 0])
    made: str = n.node("Gemm", x, n.weight(8, 5, name="b"), transA=1)
    return made


@row("MatMul with the weight on the left", [(8, {("a", 0), ("b", 1)})])
def _(n: Network) -> str:
    x = n.node("MatMul", n.weight(8, 4, name="a"), n.input("N", 4, 6))
    made: str = n.node("MatMul", n.weight(3, 8, name="b"), n.node("Relu", x))
    return made


@row("MatMul of two activations", [(8, {("a", 1), ("c", 1)})])
def _(n: Network) -> str:
    x = n.input("N", "S", 4)
    keys = n.node("Transpose", n.linear(x, 4, 8, name="c"), perm=[0, 2, 1])
    made: str = n.node("MatMul", n.linear(x, 4, 8, name="a"), keys)
    return made


@row("MatMul with a vector", [(8, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    made: str = n.node("MatMul", n.linear(n.input("N", "S", 4), 4, 8, name="a"), n.weight(8, name="b"))
    return made


@row("MatMul with one weight in two places", [(8, {("a", 1), ("c", 0), ("c", 1), ("b", 0)})])
def _(n: Network) -> str:
    weight = n.weight(8, 8, name="c")
    return _rows(n, lambda x: n.node("MatMul", n.node("Relu", n.node("MatMul", x, weight)), weight))


@row("FusedMatMul", [(8, {("a", 1), ("b", 1)})])
def _(n: Network) -> str:
    x = n.linear(n.input("N", "S", 4), 4, 8, name="a")
    made: str = n.node("FusedMatMul", x, n.weight(5, 8, name="b"), domain="com.microsoft", transB=1, alpha=0.5)
    return made


@row("FusedGemm", [(8, {("a", 0), ("b", 0)})])
def _(n: Network) -> str:
    x = n.gemm(n.input("N", 4), 4, 8, name="a")
    made: str = n.node("FusedGemm", x, n.weight(8, 5, name="b"), n.weight(5), domain="com.microsoft", activation="Relu")
    return made


@row("BatchNormalization", [(8, {("a", 0), ("s", 0), ("head", 1)})])
def _(n: Network) -> str:
    variance = n.constant(np.linspace(0.5, 2, 8, dtype=np.float32))
    return _images(
        n, lambda x: n.node("BatchNormalization", x, n.weight(8, name="s"), n.weight(8), n.weight(8), variance)
    )


@row("InstanceNormalization", [(8, {("a", 0), ("s", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("InstanceNormalization", x, n.weight(8, name="s"), n.weight(8)))


@row("GroupNormalization", [(4, {("a", 0), ("s", 0), ("head", 1)})], opset=21)
def _(n: Network) -> str:
    return _images(
        n, lambda x: n.node("GroupNormalization", n.node("Exp", x), n.weight(8, name="s"), n.weight(8), num_groups=4)
    )


@row("LayerNormalization", [])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("LayerNormalization", x, n.weight(8), n.weight(8)))


@row("RMSNormalization", [], opset=23)
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("RMSNormalization", x, n.weight(8)))


@row("SimplifiedLayerNormalization", [])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("SimplifiedLayerNormalization", x, n.weight(8)))


@row("SkipLayerNormalization", [(6, {("d", 1), ("e", 0)})])
def _(n: Network) -> str:
    def middle(x: str) -> str:
        branch = n.linear(n.linear(x, 8, 6, name="d"), 6, 8, name="e")
        made: str = n.node("SkipLayerNormalization", x, branch, n.weight(8), n.weight(8), domain="com.microsoft")
        return made

    return _rows(n, middle)


@row("SkipSimplifiedLayerNormalization", [(6, {("d", 1), ("e", 0)})])
def _(n: Network) -> str:
    def middle(x: str) -> str:
        branch = n.linear(n.linear(x, 8, 6, name="d"), 6, 8, name="e")
        made: str = n.node("SkipSimplifiedLayerNormalization", x, branch, n.weight(8), domain="com.microsoft")
        return made

    return _rows(n, middle)


@row("EmbedLayerNormalization", [(6, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    tokens = n.node("Cast", n.input("N", "S", integers=True), to=6)
    tables = n.weight(30, 8), n.weight(40, 8)
    weights = n.weight(8), n.weight(8)
    x, _ = n.node(*("EmbedLayerNormalization", tokens, "", *tables, "", *weights), domain="com.microsoft", outputs=2)
    return n.linear(n.node("Relu", n.linear(x, 8, 6, name="a")), 6, 3, name="b", bias=False)


@row("Softmax over channels", [])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Softmax", x))


@row("Softmax over rows", A_TO_B)
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Softmax", x, axis=1))


@row("Softmax before opset 13", [], opset=12)
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("Softmax", x))


for _name in ("MaxPool", "AveragePool"):
    ROWS.append(
        Row(_name, lambda n, name=_name: _images(n, lambda x: n.node(name, x, kernel_shape=[2, 2])), A_TO_HEAD)  # type: ignore[misc]
    )
ROWS.append(Row("GlobalMaxPool", lambda n: _images(n, lambda x: n.node("GlobalMaxPool", x)), A_TO_HEAD))


@row("MaxPool over channels", [])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("MaxPool", x, kernel_shape=[2], strides=[2]), read=4)


@row("ReduceMean over space", A_TO_HEAD)
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("ReduceMean", x, n.integers(2, 3)))


@row("ReduceMean over channels", [])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Sub", x, n.node("ReduceMean", x, n.integers(-1))))


@row("ReduceMax without the axis", A_TO_B)
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("ReduceMax", x, n.integers(1), keepdims=0))


@row("ReduceMean before opset 18", A_TO_HEAD, opset=13)
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("ReduceMean", x, axes=[2, 3]))


@row("ArgMax over rows", [(8, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Cast", n.node("ArgMax", x, axis=1), to=1))


@row("Flatten space into channels", [(8, {("a", 0), ("b", 1)})])
def _(n: Network) -> str:
    x = n.conv(n.input("N", 3, 4, 4), 3, 8, name="a")
    return n.gemm(n.node("Flatten", x), 8 * 16, 3, name="b")


@row("Reshape with -1 and 0", [(8, {("a", 0), ("b", 1)})])
def _(n: Network) -> str:
    x = n.conv(n.input("N", 3, 4, 4), 3, 8, name="a")
    x = n.node("Reshape", x, n.integers(0, 8, 16))
    return n.gemm(n.node("Reshape", x, n.integers(0, -1)), 8 * 16, 3, name="b")


@row("Reshape copies an axis that gets shorter", A_TO_B)
def _(n: Network) -> str:
    x = n.linear(n.input("N", "S", 4), 4, 8, name="a")
    x = n.node("Transpose", x, perm=[0, 2, 1])
    x = n.node("Reshape", n.node("Unsqueeze", x, n.integers(3)), n.integers(0, 0, -1))
    return n.linear(n.node("Transpose", x, perm=[0, 2, 1]), 8, 3, name="b", bias=False)


@row("Reshape to a computed shape", [(8, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    def middle(x: str) -> str:
        shape = n.node("Shape", x)
        batch, rows, channels = (n.node("Slice", shape, n.integers(i), n.integers(i + 1)) for i in range(3))
        flat = n.node("Reshape", x, n.node("Concat", n.node("Mul", batch, rows), channels, axis=0))
        made: str = n.node("Reshape", n.node("Relu", flat), n.node("Concat", batch, rows, n.integers(8), axis=0))
        return made

    return _rows(n, middle)


@row("Reshape splits without evidence: the longer part", [(4, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    def shuffled(x: str) -> str:
        parts = n.node("Reshape", x, n.integers(0, 0, 2, 4))
        made: str = n.node("Reshape", n.node("Transpose", parts, perm=[0, 1, 3, 2]), n.integers(0, 0, 8))
        return made

    return _rows(n, shuffled)


@row("Reshape that mixes channels with rows", [(4, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    return n.linear(
        n.node("Reshape", n.linear(n.input("N", 6, 4), 4, 8, name="a"), n.integers(0, 4, 12)), 12, 3, name="b"
    )


@row("Shape of channels in arithmetic", A_TO_B)
def _(n: Network) -> str:
    def scaled(x: str) -> str:
        channels = n.node("Gather", n.node("Shape", x), n.constant(np.int64(2)), axis=0)
        made: str = n.node("Div", x, n.node("Sqrt", n.node("Cast", channels, to=1)))
        return made

    return _rows(n, scaled)


@row("Transpose", A_TO_B)
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Transpose", n.node("Relu", n.node("Transpose", x)), perm=[2, 1, 0]))


@row("Squeeze and Unsqueeze", A_TO_HEAD)
def _(n: Network) -> str:
    def middle(x: str) -> str:
        x = n.node("Squeeze", n.node("GlobalAveragePool", x), n.integers(2, 3))
        made: str = n.node("Unsqueeze", n.node("Relu", x), n.integers(2, 3))
        return made

    return _images(n, middle)


@row("Concat", [(8, {("a", 0), ("head", 1)}), (5, {("c", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("Concat", x, n.conv("x", 3, 5, name="c"), axis=1), read=13)


@row("Concat with the input", [(8, {("a", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("Concat", "x", x, "x", axis=1), read=14)


@row("Concat along rows", [(8, {("a", 1), ("c", 1), ("b", 0)})])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Concat", x, n.linear("x", 4, 8, name="c"), axis=1))


@row("Split with sizes", [(5, {("a", 1), ("b", 0)}), (3, {("a", 1), ("c", 0)})])
def _(n: Network) -> str:
    left, right = n.node("Split", n.linear(n.input("N", "S", 4), 4, 8, name="a"), n.integers(5, 3), outputs=2, axis=-1)
    made: str = n.node("Add", n.linear(left, 5, 2, name="b"), n.linear(right, 3, 2, name="c"))
    return made


@row("Split without sizes, halves multiplied", [(4, {("a", 1), ("b", 0)})])
def _(n: Network) -> str:
    def gated(x: str) -> str:
        one, other = n.node("Split", x, outputs=2, axis=2, num_outputs=2)
        made: str = n.node("Mul", one, n.node("Sigmoid", other))
        return made

    return _rows(n, gated, read=4)


@row("Split before opset 13", [(4, {("a", 1), ("b", 0)})], opset=12)
def _(n: Network) -> str:
    def gated(x: str) -> str:
        one, other = n.node("Split", x, outputs=2, axis=2, split=[4, 4])
        made: str = n.node("Mul", one, other)
        return made

    return _rows(n, gated, read=4)


@row("Slice with negative and huge bounds", [(3, {("a", 1), ("b", 0)}), (5, {("a", 1), ("c", 0)})])
def _(n: Network) -> str:
    x = n.linear(n.input("N", "S", 4), 4, 8, name="a")
    tail = n.node("Slice", x, n.integers(-3), n.integers(2**62), n.integers(-1))
    rest = n.node("Slice", x, n.integers(-(2**62)), n.integers(-3), n.integers(2))
    made: str = n.node("Add", n.linear(tail, 3, 2, name="b"), n.linear(rest, 5, 2, name="c"))
    return made


@row("Slice in steps", [])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Slice", x, n.integers(0), n.integers(8), n.integers(2), n.integers(2)), read=4)


@row(
    "Slice before opset 10",
    [
        (5, {("a", 1), ("b", 0)}),
    ],
    opset=9,
)
def _(n: Network) -> str:
    x = n.linear(n.input("N", "S", 4), 4, 8, name="a")
    return n.linear(n.node("Slice", x, axes=[2], starts=[-5], ends=[2**40]), 5, 3, name="b", bias=False)


@row("Gather of constant channels", A_TO_B)
def _(n: Network) -> str:
    order = n.constant(np.array([3, 1, 2, 0, 7, -2, 5, 4]))
    return _rows(n, lambda x: n.node("Gather", x, order, axis=2))


@row("Gather of one channel", [])
def _(n: Network) -> str:
    return _rows(
        n, lambda x: n.node("Unsqueeze", n.node("Gather", x, n.constant(np.int64(1)), axis=2), n.integers(2)), read=1
    )


@row("Gather from an embedding", [(8, {("table", 1), ("b", 0)})])
def _(n: Network) -> str:
    x = n.node("Gather", n.weight(20, 8, name="table"), n.input("N", "S", integers=True))
    return n.linear(x, 8, 3, name="b", bias=False)


@row("Gather from an embedding tied to the output", [(8, {("table", 1)})])
def _(n: Network) -> str:
    table = n.weight(20, 8, name="table")
    x = n.node("Gather", table, n.input("N", "S", integers=True))
    made: str = n.node("MatMul", n.node("Relu", x), n.node("Transpose", table, perm=[1, 0]))
    return made


@row("Expand of rows", A_TO_B)
def _(n: Network) -> str:
    def repeated(x: str) -> str:
        x = n.node("ReduceMean", x, n.integers(1))
        made: str = n.node("Expand", x, n.integers(1, 5, 8))
        return made

    return _rows(n, repeated)


def _heads(n: Network, name: str) -> str:
    """Two heads of four dims, ``(N, 2, S, 4)``, of ``x``, ``(N, S, 4)``."""
    made: str = n.node(
        "Transpose", n.node("Reshape", n.linear("x", 4, 8, name=name), n.integers(0, 0, 2, 4)), perm=[0, 2, 1, 3]
    )
    return made


def _joined_heads(n: Network, x: str) -> str:
    x = n.node("Reshape", n.node("Transpose", x, perm=[0, 2, 1, 3]), n.integers(0, 0, 8))
    return n.linear(x, 8, 3, name="o", bias=False)


HEADS: list[Group] = [(2, {("q", 1), ("k", 1), ("v", 1), ("o", 0)})]


@row("Expand of a mask to all heads", HEADS)
def _(n: Network) -> str:
    x = n.input("N", "S", 4)
    mask = n.node("Unsqueeze", n.node("ReduceMean", x, n.integers(2), keepdims=0), n.integers(1, 2))
    batch, rows = (n.node("Shape", x, start=axis, end=axis + 1) for axis in (0, 1))
    mask = n.node("Expand", mask, n.node("Concat", batch, n.integers(2, 1), rows, axis=0))
    scores = n.node("MatMul", _heads(n, "q"), n.node("Transpose", _heads(n, "k"), perm=[0, 1, 3, 2]))
    weights = n.node("Softmax", n.node("Add", mask, scores))
    return _joined_heads(n, n.node("MatMul", weights, _heads(n, "v")))


@row("Reshape to heads of a batch of fixed size", HEADS)
def _(n: Network) -> str:
    n.input(2, 6, 4)

    def heads(name: str) -> str:
        x = n.node("Transpose", n.linear("x", 4, 8, name=name), perm=[1, 0, 2])
        x = n.node("Transpose", n.node("Reshape", x, n.integers(6, 4, 4)), perm=[1, 0, 2])
        made: str = n.node("Reshape", n.node("Neg", x), n.integers(2, 2, 6, 4))
        return made

    weights = n.node("Softmax", n.node("MatMul", heads("q"), n.node("Transpose", heads("k"), perm=[0, 1, 3, 2])))
    return _joined_heads(n, n.node("MatMul", weights, heads("v")))


@row("Reshape copies an axis of batch and heads", HEADS)
def _(n: Network) -> str:
    x = n.input("N", 6, 4)

    def flat(name: str) -> str:
        made: str = n.node("Reshape", _heads(n, name), n.integers(-1, 6, 4))
        return made

    scores = n.node("Softmax", n.node("MatMul", flat("q"), n.node("Transpose", flat("k"), perm=[0, 2, 1])))
    x = n.node("Softmax", n.node("Reshape", n.node("MatMul", scores, flat("v")), n.integers(0, -1)))
    return _joined_heads(n, n.node("Reshape", x, n.integers(-1, 2, 6, 4)))


@row("Reshape of a value without elements", A_TO_B)
def _(n: Network) -> str:
    def middle(x: str) -> str:
        nothing = n.node("Slice", x, n.integers(0), n.integers(0), n.integers(2))
        nothing = n.node("Reshape", nothing, n.integers(0, 0), allowzero=1)
        made: str = n.node("Add", x, n.node("ReduceSum", nothing))
        return made

    return _rows(n, middle)


@row("com.microsoft::MultiHeadAttention with a computed bias", [])
def _(n: Network) -> str:
    x = n.input("N", "S", 4)
    bias = n.node("Tile", n.node("ReduceMean", x, n.integers(0, 1), keepdims=0), n.integers(6))
    parts = (n.linear(x, 4, 8, name=name, bias=False) for name in "qkv")
    x = n.node("MultiHeadAttention", *parts, bias, domain="com.microsoft", num_heads=2)
    return n.linear(x, 8, 3, name="o", bias=False)


@row("Tile of channels", A_TO_B)
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Tile", x, n.integers(1, 1, 2)), read=16)


@row("Pad of space", A_TO_HEAD)
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("Pad", x, n.integers(0, 0, 1, 1, 0, 0, 1, 1)))


@row("Pad of channels", [])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("Pad", x, n.integers(0, 1, 0, 0, 0, 0, 0, 0)), read=9)


@row("Resize by scales", A_TO_HEAD)
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("Resize", x, "", n.constant(np.array([1, 1, 2, 2], np.float32))))


@row("Resize to sizes", A_TO_HEAD)
def _(n: Network) -> str:
    x = n.input(2, 3, 8, 8)
    x = n.node("Resize", n.conv(x, 3, 8, name="a"), "", "", n.integers(2, 8, 12, 12))
    return n.pooled_head(x, 8)


@row("Resize to sizes of some axes", A_TO_HEAD)
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("Resize", x, "", "", n.integers(12, 8, 12), axes=[-1, 1, 2]))


@row("Resize to computed sizes of some axes", A_TO_HEAD)
def _(n: Network) -> str:
    def doubled(x: str) -> str:
        made: str = n.node(
            "Resize", x, "", "", n.node("Mul", n.node("Shape", x, start=1), n.integers(1, 2, 2)), axes=[1, 2, 3]
        )
        return made

    x = n.input("N", 3, "H", "W")
    return n.pooled_head(doubled(n.conv(x, 3, 8, name="a")), 8)


@row("DepthToSpace", [(2, {("a", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("DepthToSpace", x, blocksize=2), read=2)


@row("DepthToSpace by columns", [(2, {("a", 0), ("head", 1)})])
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("DepthToSpace", x, blocksize=2, mode="CRD"), read=2)


@row("SpaceToDepth", A_TO_HEAD)
def _(n: Network) -> str:
    return _images(n, lambda x: n.node("SpaceToDepth", x, blocksize=2), read=32)


for _name, _gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):

    def _recurrent(n: Network, name: str = _name, gates: int = _gates) -> str:
        x = n.linear(n.input("S", "N", 4), 4, 8, name="a")
        weights = n.weight(1, gates * 5, 8, name="b"), n.weight(1, gates * 5, 5), n.weight(1, gates * 10)
        made: str = n.node(name, x, *weights, hidden_size=5)
        return made

    ROWS.append(Row(_name, _recurrent, [(8, {("a", 1), ("b", 2)})]))


@row("Einsum", [])
def _(n: Network) -> str:
    return _rows(n, lambda x: n.node("Einsum", x, n.weight(8, 8), equation="nsc,cd->nsd"))


def test_table_has_unique_rows() -> None:
    names = [each.operator for each in ROWS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("each", ROWS, ids=lambda each: each.operator)
def test_operator_couples_what_goes_together_when_pruned(each: Row, tmp_path: Path) -> None:
    network = Network(opset=each.opset)
    path = network.save(tmp_path / "network.onnx", each.build(network))
    trial = prune(path, workspace=tmp_path, attention=each.attention)
    expected: Any = {(width, frozenset(slices)) for width, slices in each.groups}
    assert trial.groups == expected
    assert trial.difference < 1e-4
    for _, slices in each.groups:
        for name, axis in slices:
            assert trial.after[name][axis] < trial.before[name][axis]
