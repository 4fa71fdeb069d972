"""LSTM, GRU and RNN: their input may get narrower, their hidden state stays as it is."""

import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.graph.node import label, required


def recurrence(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(S, B, I)``, or batch first, with ``(directions, gates H, I)``: ``I`` is summed over at every step."""
    reason = f"hidden state of {label(node)}"
    weight = required(node, 1)
    data, kernel = walk.of(node.inputs[0]), walk.of(weight)
    walk.keep((*data[:2], *kernel[:2]), reason)
    for value in node.inputs[2:]:
        walk.keep(walk.of(value), reason)
    reached = walk.couple(data[2], kernel[2], f"reaches a fixed axis in {label(node)}")
    walk.contract(node, slot=0, axis=2, ids=reached, weight=(weight, 2) if weight.const_value is not None else None)
    return [walk.without_units(output) for output in node.outputs]


RULES: dict[str, Rule] = dict.fromkeys(("LSTM", "GRU", "RNN"), recurrence)
