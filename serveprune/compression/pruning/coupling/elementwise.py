"""Operators that work position by position."""

import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.compression.pruning.units import Ids
from serveprune.graph.node import label


def unary(node: ir.Node, walk: Walk) -> list[Axes]:
    """One input, one output, position by position. Further inputs (limits of Clip, ratio of Dropout) are scalars."""
    axes = walk.of(node.inputs[0])
    for value in node.inputs[1:]:
        walk.keep(walk.of(value), f"setting of {label(node)}")
    return [axes for _ in node.outputs]


def broadcast(node: ir.Node, walk: Walk) -> list[Axes]:
    """Numpy broadcasting: equal sizes couple, a size of 1 meets every position."""
    operands = [(walk.of(value), walk.shape(value)) for value in node.inputs if value is not None]
    rank = max(len(shape) for _, shape in operands)
    joined: list[Ids | None] = []
    for position in range(rank):
        met: list[tuple[Ids | None, int | None]] = []
        for axes, shape in operands:
            index = position - rank + len(shape)
            if index >= 0:
                met.append((axes[index], shape[index]))
        joined.append(walk.couple_sizes(met, node))
    return [tuple(joined)]


_UNARY = (
    *("Relu", "Clip", "Gelu", "Erf", "Tanh", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "LeakyRelu", "Elu"),
    *("Softplus", "Softsign", "Mish", "Selu", "Celu", "ThresholdedRelu", "Shrink", "Cast", "Identity", "Dropout"),
    *("Neg", "Abs", "Sqrt", "Exp", "Log", "Reciprocal", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan"),
    *("Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Not", "BitwiseNot", "IsNaN", "IsInf"),
    *("com.microsoft::QuickGelu", "com.microsoft::Gelu"),
)
_BROADCAST = (
    *("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Where", "Min", "Max", "Sum", "Mean", "Mod"),
    *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"),
    *("com.microsoft::BiasGelu", "com.microsoft::FastGelu"),
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BROADCAST, broadcast),
    "CastLike": lambda node, walk: [walk.of(node.inputs[0])],
}
