from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.node import attribute


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return Operator(lambda node: lambda inputs, run: function(needed(inputs, 0)))


def _binary(function: Callable[[Tensor, Tensor], Tensor], *, weights: tuple[int, ...] = ()) -> Operator:
    return Operator(lambda node: lambda inputs, run: function(needed(inputs, 0), needed(inputs, 1)), weights=weights)


def _leaky_relu(node: ir.Node) -> Kernel:
    slope = float(attribute(node, "alpha", 0.01))
    return lambda inputs, run: functional.leaky_relu(needed(inputs, 0), slope)


def _gelu(node: ir.Node) -> Kernel:
    approximate = str(attribute(node, "approximate", "none"))
    return lambda inputs, run: functional.gelu(needed(inputs, 0), approximate=approximate)


def _clip(node: ir.Node) -> Kernel:
    # Before opset 11 the limits were attributes.
    declared = (attribute(node, "min"), attribute(node, "max"))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        given = (optional(inputs, 1), optional(inputs, 2))
        low, high = (limit if value is None else value.item() for value, limit in zip(given, declared, strict=True))
        data = needed(inputs, 0)
        return data if low is None and high is None else torch.clamp(data, min=low, max=high)

    return kernel


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Add": _binary(torch.add, weights=(0, 1)),
        "Mul": _binary(torch.mul, weights=(0, 1)),
        "Sub": _binary(torch.sub),
        "Relu": _unary(torch.relu),
        "LeakyRelu": Operator(_leaky_relu),
        "Gelu": Operator(_gelu),
        "Clip": Operator(_clip, settings=(1, 2)),
    }
)
