"""LSTM, GRU and RNN by torch's own kernels, with weights in the order of the graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.node import attribute, label

_GATES: Mapping[str, tuple[int, ...]] = MappingProxyType({"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)})
"""Where the graph has the gates that torch wants in order: input, forget, cell, output; reset, update, new."""

_ACTIVATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
)
"""The only ones that torch's kernels have, but for RNN, which also has relu."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """What the attributes of a node say.

    Attributes:
        kind: LSTM, GRU or RNN.
        relu: Whether an RNN has relu and not tanh.
        resets_first: Whether a GRU resets its state before the product with the weights (torch does after it).
        directions: 1 or 2.
        backwards: Whether the only direction is from the end.
        batch_first: Whether data and states have the batch first.
    """

    kind: str
    relu: bool
    resets_first: bool
    directions: int
    backwards: bool
    batch_first: bool

    @classmethod
    def of(cls, node: ir.Node) -> "_Cell":
        direction, kind = str(attribute(node, "direction", "forward")), node.op_type
        directions = 2 if direction == "bidirectional" else 1
        known = _ACTIVATIONS[kind] * directions
        activations = tuple(str(name).lower() for name in attribute(node, "activations", known))
        relu = kind == "RNN" and set(activations) == {"relu"}
        if activations != known and not relu:
            raise InvalidArgument(
                f"expected the activations {', '.join(known)} in {label(node)}; got {', '.join(activations)}"
            )
        peepholes = len(node.inputs) > 7 and node.inputs[7] is not None
        if attribute(node, "clip") is not None or attribute(node, "input_forget", 0) or peepholes:
            raise InvalidArgument(f"expected {label(node)} without clip, input_forget and peepholes")
        return cls(
            kind=kind,
            relu=relu,
            resets_first=kind == "GRU" and not attribute(node, "linear_before_reset", 0),
            directions=directions,
            backwards=direction == "reverse",
            batch_first=bool(attribute(node, "layout", 0)),
        )


@dataclass(frozen=True, slots=True)
class _Weights:
    """Of one direction, with gates in torch's order: ``(G H, I)``, ``(G H, H)`` and two of ``(G H,)``."""

    read: Tensor
    carried: Tensor
    biases: tuple[Tensor, ...]

    def flat(self) -> list[Tensor]:
        return [self.read, self.carried, *self.biases]


def _recurrence(node: ir.Node) -> Kernel:
    """``(S, B, I)`` with ``(D, G H, I)`` gives ``(S, D, B, H)`` and the last states ``(D, B, H)``."""
    cell = _Cell.of(node)

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor]:
        lengths = optional(inputs, 4)
        data, *states = (
            value if value is None or not cell.batch_first else value.transpose(0, 1)
            for value in (needed(inputs, 0), optional(inputs, 5), optional(inputs, 6))
        )
        assert data is not None
        weights = [_weights(inputs, direction, cell.kind) for direction in range(cell.directions)]
        hidden = weights[0].carried.shape[1]
        nothing = data.new_zeros(cell.directions, data.shape[1], hidden)
        first = [nothing if state is None else state.contiguous() for state in states]
        made, *last = _run(data, lengths, first if cell.kind == "LSTM" else first[:1], weights, cell)
        made = made.reshape(*made.shape[:2], cell.directions, hidden)
        if cell.batch_first:
            return made.transpose(0, 1), *(state.transpose(0, 1) for state in last)
        return made.transpose(1, 2), *last

    return kernel


def _weights(inputs: Inputs, direction: int, kind: str) -> _Weights:
    order, bias = _GATES[kind], optional(inputs, 3)
    return _Weights(
        _ordered(needed(inputs, 1)[direction], order),
        _ordered(needed(inputs, 2)[direction], order),
        () if bias is None else tuple(_ordered(half, order) for half in bias[direction].chunk(2)),
    )


def _ordered(gates: Tensor, order: tuple[int, ...]) -> Tensor:
    if len(order) == 1:
        return gates
    parts = gates.chunk(len(order))
    return torch.cat([parts[gate] for gate in order])


def _run(
    data: Tensor, lengths: Tensor | None, first: list[Tensor], weights: list[_Weights], cell: _Cell
) -> list[Tensor]:
    """Return ``(S, B, D H)`` and the last states."""
    if cell.resets_first:
        both = [
            _reset_first(data, lengths, first[0][index], found, backwards=cell.backwards or index == 1)
            for index, found in enumerate(weights)
        ]
        return [torch.cat([made for made, _ in both], dim=2), torch.stack([last for _, last in both])]
    if cell.backwards:
        data = _reversed(data, lengths)
    made, *last = _fused(data, lengths, first, weights, cell)
    return [_reversed(made, lengths) if cell.backwards else made, *last]


def _fused(
    data: Tensor, lengths: Tensor | None, first: list[Tensor], weights: list[_Weights], cell: _Cell
) -> Sequence[Tensor]:
    # Torch has two signatures for each, which no type tells apart.
    kernels: dict[str, Any] = {
        "LSTM": torch.lstm,
        "GRU": torch.gru,
        "RNN": torch.rnn_relu if cell.relu else torch.rnn_tanh,
    }
    function, flat = kernels[cell.kind], [tensor for found in weights for tensor in found.flat()]
    state = first if cell.kind == "LSTM" else first[0]
    # Whether there are biases, layers, dropout, training (backward needs it on some devices), both directions.
    told = (bool(weights[0].biases), 1, 0.0, torch.is_grad_enabled(), cell.directions == 2)
    if lengths is None:
        result: Sequence[Tensor] = function(data, state, flat, *told, False)
        return result
    packed = pack_padded_sequence(data, lengths.long(), enforce_sorted=False)
    order, back = packed.sorted_indices, packed.unsorted_indices
    assert order is not None
    assert back is not None
    by_length = [value.index_select(1, order) for value in first]
    rows, *last = function(packed.data, packed.batch_sizes, by_length if len(first) == 2 else by_length[0], flat, *told)
    made, _ = pad_packed_sequence(PackedSequence(rows, packed.batch_sizes, order, back), total_length=data.shape[0])
    return [made, *(value.index_select(1, back) for value in last)]


def _reset_first(
    data: Tensor, lengths: Tensor | None, state: Tensor, weights: _Weights, *, backwards: bool
) -> tuple[Tensor, Tensor]:
    """Run a GRU whose new state is made of ``r * h``, step by step."""
    data = _reversed(data, lengths) if backwards else data
    read = data @ weights.read.T + (sum(weights.biases) if weights.biases else 0)
    size = state.shape[1]
    gates, new = torch.split(weights.carried, [2 * size, size])
    rows = []
    for step, here in enumerate(read):
        reset, update = torch.sigmoid(here[:, : 2 * size] + state @ gates.T).chunk(2, dim=1)
        made = update * state + (1 - update) * torch.tanh(here[:, 2 * size :] + (reset * state) @ new.T)
        if lengths is None:
            rows.append(made)
            state = made
        else:
            lives = (step < lengths.to(made.device)).unsqueeze(1)
            rows.append(made * lives)
            state = torch.where(lives, made, state)
    whole = torch.stack(rows)
    return (_reversed(whole, lengths) if backwards else whole), state


def _reversed(data: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn ``(S, B, n)`` around in time, each sample within its own length."""
    if lengths is None:
        return data.flip(0)
    steps = torch.arange(data.shape[0], device=data.device).unsqueeze(1)
    last = lengths.to(data.device, torch.int64) - 1
    places = torch.where(steps <= last, last - steps, steps)
    return data.gather(0, places.unsqueeze(2).expand_as(data))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {kind: Operator(_recurrence, weights=(1, 2, 3), settings=(4,)) for kind in _GATES}
)
