"""Whatever couples in a randomly written network: the small graph computes what the masked graph computes."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compression.pruning.attention_networks import AS_OPERATOR, WRITTEN_OUT
from unit.compression.pruning.networks import Network, prune

Move = Callable[[Network, str, int, str], tuple[str, int]]
"""Continues a network: the value so far, its channels and a prefix for names give the next value and its channels."""

QUICK = settings(max_examples=60, derandomize=True)


def _relu(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    return n.node("Relu", x), channels


# Images, (N, channels, H, W).


def _conv(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    return n.node("Relu", n.conv(x, channels, 12, name=tag)), 12


def _depthwise(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    return n.node("HardSwish", n.conv(x, channels, channels, name=tag, group=channels)), channels


def _multiplied_depthwise(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    if channels > 12:
        return _relu(n, x, channels, tag)
    return n.conv(x, channels, 2 * channels, name=tag, group=channels), 2 * channels


def _grouped(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    if channels % 4:
        return _relu(n, x, channels, tag)
    return n.conv(x, channels, 8, name=tag, group=4 if channels > 12 else 2), 8


def _residual(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    branch = n.conv(n.node("Relu", n.conv(x, channels, 10, name=f"{tag}a")), 10, channels, name=f"{tag}b")
    return n.node("Add", branch, x), channels


def _dense_connection(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    if channels > 16:
        return _conv(n, x, channels, tag)
    return n.node("Concat", x, n.conv(x, channels, 6, name=tag), axis=1), channels + 6


def _shuffle(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    if channels % 2:
        return _relu(n, x, channels, tag)
    parts = n.node("Transpose", n.node("Reshape", x, n.integers(0, 2, channels // 2, 8, 8)), perm=[0, 2, 1, 3, 4])
    return n.node("Reshape", parts, n.integers(0, channels, 8, 8)), channels


def _gate(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    squeezed = n.conv(n.node("GlobalAveragePool", x), channels, 5, name=f"{tag}a", kernel=1)
    gate = n.node("Sigmoid", n.conv(n.node("Relu", squeezed), 5, channels, name=f"{tag}b", kernel=1))
    return n.node("Mul", x, gate), channels


def _halves(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    if channels % 2:
        return _relu(n, x, channels, tag)
    one, other = n.node("Split", x, outputs=2, axis=1, num_outputs=2)
    return n.node("Mul", one, n.node("Tanh", other)), channels // 2


def _batch_normalization(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    variance = n.constant(np.linspace(0.5, 2, channels, dtype=np.float32))
    weights = (n.weight(channels), n.weight(channels), n.weight(channels), variance)
    return n.node("BatchNormalization", x, *weights), channels


def _instance_normalization(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    return n.node("InstanceNormalization", x, n.weight(channels), n.weight(channels)), channels


def _swapped(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    middle = n.integers(channels // 3)
    head = n.node("Slice", x, n.integers(0), middle, n.integers(1))
    tail = n.node("Slice", x, middle, n.integers(2**40), n.integers(1))
    return n.node("Concat", tail, head, axis=1), channels


def _channels_last(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    rows = n.linear(n.node("Transpose", x, perm=[0, 2, 3, 1]), channels, 9, name=tag)
    return n.node("Transpose", rows, perm=[0, 3, 1, 2]), 9


IMAGE_MOVES: tuple[Move, ...] = (
    *(_relu, _conv, _depthwise, _multiplied_depthwise, _grouped, _residual, _dense_connection, _shuffle, _gate),
    *(_halves, _batch_normalization, _instance_normalization, _swapped, _channels_last),
)


# Sequences, (N, S, channels).


def _linear(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    return n.node("Gelu", n.linear(x, channels, 10, name=tag)), 10


def _normalized_mlp(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    normalized = n.node("LayerNormalization", x, n.weight(channels), n.weight(channels))
    hidden = n.node("Gelu", n.linear(normalized, channels, 14, name=f"{tag}a"))
    return n.node("Add", x, n.linear(hidden, 14, channels, name=f"{tag}b")), channels


def _gated_mlp(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    one, other = n.node("Split", n.linear(x, channels, 16, name=f"{tag}a"), n.integers(8, 8), outputs=2, axis=-1)
    gated = n.node("Mul", one, n.node("Sigmoid", other))
    return n.node("Add", n.linear(gated, 8, channels, name=f"{tag}b"), x), channels


def _joined(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    if channels > 12:
        return _linear(n, x, channels, tag)
    return n.node("Concat", n.linear(x, channels, 5, name=tag), x, axis=2), channels + 5


def _recurrent(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
    weights = n.weight(1, 18, channels, name=tag), n.weight(1, 18, 6)
    states, _ = n.node("GRU", n.node("Transpose", x, perm=[1, 0, 2]), *weights, outputs=2, hidden_size=6)
    return n.node("Transpose", n.node("Squeeze", states, n.integers(1)), perm=[1, 0, 2]), 6


def _attention(index: int) -> Move:
    def attend(n: Network, x: str, channels: int, tag: str) -> tuple[str, int]:
        return n.node("Add", (*WRITTEN_OUT, *AS_OPERATOR)[index](n, x, channels, tag=tag), x), channels

    return attend


SEQUENCE_MOVES: tuple[Move, ...] = (
    *(_relu, _linear, _normalized_mlp, _gated_mlp, _joined, _recurrent),
    *map(_attention, range(len(WRITTEN_OUT) + len(AS_OPERATOR))),
)


def _check(network: Network, output: str, *, part: Literal["heads", "head_dims"], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = network.save(Path(folder) / "network.onnx", output)
        trial = prune(path, workspace=Path(folder), attention=part, seed=seed, share=0.5)
    assert trial.difference <= 1e-4
    assert trial.groups
    for group in trial.graph.groups:
        for piece in group.slices:
            assert trial.after[piece.name][piece.axis] < trial.before[piece.name][piece.axis]


@QUICK
@given(moves=st.lists(st.sampled_from(IMAGE_MOVES), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_convolutional_network_computes_the_same_when_units_go(moves: list[Move], seed: int) -> None:
    network = Network(opset=20, seed=seed)
    x, channels = network.conv(network.input("N", 3, 8, 8), 3, 8, name="first"), 8
    for index, move in enumerate(moves):
        x, channels = move(network, x, channels, f"m{index}")
    _check(network, network.pooled_head(network.conv(x, channels, 7, name="last"), 7), part="heads", seed=seed)


@QUICK
@given(
    moves=st.lists(st.sampled_from(SEQUENCE_MOVES), min_size=1, max_size=4),
    part=st.sampled_from(["heads", "head_dims"]),
    seed=st.integers(0, 99),
)
def test_sequence_network_computes_the_same_when_units_go(
    moves: list[Move], part: Literal["heads", "head_dims"], seed: int
) -> None:
    network = Network(opset=23, seed=seed)
    x, channels = network.linear(network.input("N", "S", 4), 4, 8, name="first"), 8
    for index, move in enumerate(moves):
        x, channels = move(network, x, channels, f"m{index}")
    x = network.node("Relu", network.linear(x, channels, 7, name="last"))
    _check(network, network.linear(x, 7, 2, name="head"), part=part, seed=seed)


@QUICK
@given(
    moves=st.lists(st.sampled_from(IMAGE_MOVES), min_size=1, max_size=3),
    further=st.lists(st.sampled_from(SEQUENCE_MOVES), min_size=1, max_size=2),
    seed=st.integers(0, 99),
)
def test_mixed_network_computes_the_same_when_units_go(moves: list[Move], further: list[Move], seed: int) -> None:
    network = Network(opset=23, seed=seed)
    x, channels = network.conv(network.input("N", 3, 8, 8), 3, 8, name="first"), 8
    for index, move in enumerate(moves):
        x, channels = move(network, x, channels, f"m{index}")
    x = network.node("Transpose", network.node("Reshape", x, network.integers(0, channels, 64)), perm=[0, 2, 1])
    for index, move in enumerate(further):
        x, channels = move(network, x, channels, f"s{index}")
    x = network.node("Relu", network.linear(x, channels, 7, name="last"))
    _check(network, network.linear(x, 7, 2, name="head"), part="heads", seed=seed)
