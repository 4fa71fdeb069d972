"""Activations, alone and as part of a fused operator."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.node import attribute, label

Activation = Callable[[Tensor], Tensor]


def fused_activation(node: ir.Node, name: str, parameters: Sequence[float]) -> Activation:
    """Return the activation that a fused operator ends with.

    Args:
        node: The fused node, for messages.
        name: The operator's name, empty for none.
        parameters: Its attributes, in the order in which the operator lists them.

    Raises:
        InvalidArgument: An activation that no fused operator is known to have.
    """
    if not name:
        return lambda data: data
    if name == "Clip":
        low, high = (*parameters, *(-torch.inf, torch.inf)[len(parameters) :])
        return lambda data: torch.clamp(data, low, high)
    if name in _PARAMETERS and name in OPERATORS:
        names = _PARAMETERS[name][: len(parameters)]
        settings = [ir.AttrFloat32(each, float(value)) for each, value in zip(names, parameters, strict=True)]
        kernel = OPERATORS[name].build(ir.Node("", name, [None], settings))
        run = Run(training=False, device=torch.device("cpu"))

        def activation(data: Tensor) -> Tensor:
            made = kernel((data,), run)
            assert isinstance(made, Tensor)
            return made

        return activation
    raise InvalidArgument(f"{label(node)} ends with the activation {name}, which has no differentiable kernel here")


_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "Elu": ("alpha",),
    "Gelu": (),
    "HardSigmoid": ("alpha", "beta"),
    "HardSwish": (),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Selu": ("alpha", "gamma"),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": ("alpha",),
}


def _plain(function: Activation) -> Operator:
    return Operator(lambda node: lambda inputs, run: function(needed(inputs, 0)))


def _leaky_relu(node: ir.Node) -> Kernel:
    slope = float(attribute(node, "alpha", 0.01))
    return lambda inputs, run: functional.leaky_relu(needed(inputs, 0), slope)


def _parametric_relu(inputs: Inputs, run: Run) -> Tensor:
    data = needed(inputs, 0)
    return torch.where(data < 0, data * needed(inputs, 1), data)


def _elu(node: ir.Node) -> Kernel:
    alpha = float(attribute(node, "alpha", 1.0))
    return lambda inputs, run: functional.elu(needed(inputs, 0), alpha)


def _celu(node: ir.Node) -> Kernel:
    alpha = float(attribute(node, "alpha", 1.0))
    return lambda inputs, run: functional.celu(needed(inputs, 0), alpha)


def _selu(node: ir.Node) -> Kernel:
    alpha = float(attribute(node, "alpha", 1.67326319217681884765625))
    gamma = float(attribute(node, "gamma", 1.05070102214813232421875))
    return lambda inputs, run: gamma * functional.elu(needed(inputs, 0), alpha)


def _thresholded_relu(node: ir.Node) -> Kernel:
    alpha = float(attribute(node, "alpha", 1.0))
    return lambda inputs, run: functional.threshold(needed(inputs, 0), alpha, 0.0)


def _hard_sigmoid(node: ir.Node) -> Kernel:
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return lambda inputs, run: torch.clamp(alpha * needed(inputs, 0) + beta, 0.0, 1.0)


def _sloped_swish(node: ir.Node, *, default: float) -> Kernel:
    alpha = float(attribute(node, "alpha", default))
    if alpha == 1.0:
        return lambda inputs, run: functional.silu(needed(inputs, 0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        return data * torch.sigmoid(alpha * data)

    return kernel


def _shrink(node: ir.Node) -> Kernel:
    bias, limit = float(attribute(node, "bias", 0.0)), float(attribute(node, "lambd", 0.5))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        outside = torch.where(data < -limit, data + bias, data - bias)
        return torch.where(data.abs() > limit, outside, torch.zeros_like(data))

    return kernel


def _gelu(node: ir.Node) -> Kernel:
    approximate = str(attribute(node, "approximate", "none"))
    return lambda inputs, run: functional.gelu(needed(inputs, 0), approximate=approximate)


def _biased_gelu(approximate: str) -> Operator:
    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, bias = needed(inputs, 0), optional(inputs, 1)
        return functional.gelu(data if bias is None else data + bias, approximate=approximate)

    return Operator(lambda node: kernel, weights=(1,))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Relu": _plain(torch.relu),
        "Sigmoid": _plain(torch.sigmoid),
        "Tanh": _plain(torch.tanh),
        "HardSwish": _plain(functional.hardswish),
        "Mish": _plain(functional.mish),
        "Softplus": _plain(functional.softplus),
        "Softsign": _plain(functional.softsign),
        "LeakyRelu": Operator(_leaky_relu),
        "PRelu": Operator(lambda node: _parametric_relu, weights=(1,)),
        "Elu": Operator(_elu),
        "Celu": Operator(_celu),
        "Selu": Operator(_selu),
        "ThresholdedRelu": Operator(_thresholded_relu),
        "HardSigmoid": Operator(_hard_sigmoid),
        "Swish": Operator(lambda node: _sloped_swish(node, default=1.0)),
        "Shrink": Operator(_shrink),
        "Gelu": Operator(_gelu),
        "com.microsoft::Gelu": _plain(functional.gelu),
        "com.microsoft::QuickGelu": Operator(lambda node: _sloped_swish(node, default=1.702)),
        "com.microsoft::BiasGelu": _biased_gelu("none"),
        "com.microsoft::FastGelu": _biased_gelu("tanh"),
    }
)
