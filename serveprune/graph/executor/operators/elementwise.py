"""Arithmetic, functions of one number, comparisons and logic."""

from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.node import attribute, constant

_Unary = Callable[[Tensor], Tensor]
_Binary = Callable[[Tensor, Tensor], Tensor]


def _unary(function: _Unary) -> Operator:
    return Operator(lambda node: lambda inputs, run: function(needed(inputs, 0)))


def _binary(function: _Binary, *, weights: tuple[int, ...] = ()) -> Operator:
    return Operator(lambda node: lambda inputs, run: function(needed(inputs, 0), needed(inputs, 1)), weights=weights)


def _variadic(function: _Binary) -> Operator:
    return Operator(lambda node: lambda inputs, run: reduce(function, _all(inputs)))


def _all(inputs: Inputs) -> list[Tensor]:
    return [value for value in inputs if value is not None]


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; integers round toward zero, as C does."""
    if numerator.is_floating_point():
        return torch.div(numerator, denominator)
    return torch.div(numerator, denominator, rounding_mode="trunc")


def _modulus(node: ir.Node) -> Kernel:
    # fmod has the sign of the dividend, the default that of the divisor.
    function = torch.fmod if attribute(node, "fmod", 0) else torch.remainder
    return lambda inputs, run: function(needed(inputs, 0), needed(inputs, 1))


def _power(node: ir.Node) -> Kernel:
    fixed = constant(node.inputs[1])
    number = fixed.item() if fixed is not None and fixed.size == 1 and fixed.ndim == 0 else None

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        base, exponent = needed(inputs, 0), needed(inputs, 1)
        if base.is_floating_point():
            return torch.pow(base, exponent.to(base.dtype) if number is None else number)
        if exponent.is_floating_point():
            return torch.pow(base.double(), exponent.double()).to(base.dtype)
        return torch.pow(base, exponent).to(base.dtype)

    return kernel


def _shift(node: ir.Node) -> Kernel:
    left = attribute(node, "direction") == "LEFT"
    function = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return lambda inputs, run: function(needed(inputs, 0), needed(inputs, 1))


def _clip(node: ir.Node) -> Kernel:
    # Before opset 11 the limits were attributes.
    declared = (attribute(node, "min"), attribute(node, "max"))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        given = (optional(inputs, 1), optional(inputs, 2))
        low, high = (limit if value is None else value.item() for value, limit in zip(given, declared, strict=True))
        data = needed(inputs, 0)
        return data if low is None and high is None else torch.clamp(data, min=low, max=high)

    return kernel


def _is_infinite(node: ir.Node) -> Kernel:
    negative, positive = bool(attribute(node, "detect_negative", 1)), bool(attribute(node, "detect_positive", 1))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        if negative and positive:
            return torch.isinf(data)
        if negative:
            return torch.isneginf(data)
        return torch.isposinf(data) if positive else torch.zeros_like(data, dtype=torch.bool)

    return kernel


def _mean(inputs: Inputs, run: Run) -> Tensor:
    values = _all(inputs)
    return reduce(torch.add, values) / len(values)


def _where(inputs: Inputs, run: Run) -> Tensor:
    return torch.where(needed(inputs, 0), needed(inputs, 1), needed(inputs, 2))


_UNARY: Mapping[str, _Unary] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

_BINARY: Mapping[str, _Binary] = {
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        **{name: _unary(function) for name, function in _UNARY.items()},
        **{name: _binary(function) for name, function in _BINARY.items()},
        "Add": _binary(torch.add, weights=(0, 1)),
        "Mul": _binary(torch.mul, weights=(0, 1)),
        "Max": _variadic(torch.maximum),
        "Min": _variadic(torch.minimum),
        "Sum": _variadic(torch.add),
        "Mean": Operator(lambda node: _mean),
        "Mod": Operator(_modulus),
        "Pow": Operator(_power),
        "BitShift": Operator(_shift),
        "Clip": Operator(_clip, settings=(1, 2)),
        "IsInf": Operator(_is_infinite),
        "Where": Operator(lambda node: _where),
    }
)
