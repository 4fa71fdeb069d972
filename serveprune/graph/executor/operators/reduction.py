"""Operators that make one number of many along axes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, numbers
from serveprune.graph.node import attribute, integers

_Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]
"""Takes the data, the axes to reduce, and whether they stay with size 1."""


def _reduction(function: _Reduction) -> Operator:
    def build(node: ir.Node) -> Kernel:
        # Newer opsets give the axes as an input, older ones as an attribute.
        declared = integers(node, "axes")
        stay = bool(attribute(node, "keepdims", 1))
        untouched = bool(attribute(node, "noop_with_empty_axes", 0))

        def kernel(inputs: Inputs, run: Run) -> Tensor:
            data, given = needed(inputs, 0), numbers(inputs, 1)
            axes = tuple(declared or () if given is None else given)
            if not axes and untouched:
                return data
            axes = tuple(sorted(axis % data.ndim for axis in axes)) if axes else tuple(range(data.ndim))
            # torch takes no axes to mean all axes, which only differs where there is none.
            return function(data, axes, stay) if axes else function(data.reshape(1), (0,), False)

        return kernel

    return Operator(build, settings=(1,))


def _sum(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    return torch.sum(data, axes, keepdim=stay, dtype=data.dtype)


def _mean(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    if data.is_floating_point():
        return torch.mean(data, axes, keepdim=stay)
    return torch.mean(data.double(), axes, keepdim=stay).to(data.dtype)


def _product(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    for axis in reversed(axes):
        data = torch.prod(data, axis, keepdim=stay, dtype=data.dtype)
    return data


def _norm(order: int) -> _Reduction:
    def norm(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
        # vector_norm has a gradient at zero, where the square root has none.
        floating = data if data.is_floating_point() else data.double()
        made: Tensor = torch.linalg.vector_norm(floating, order, axes, keepdim=stay)
        return made.to(data.dtype)

    return norm


def _square_sum(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    return torch.sum(data * data, axes, keepdim=stay, dtype=data.dtype)


def _log_sum(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    floating = data if data.is_floating_point() else data.double()
    return torch.log(torch.sum(floating, axes, keepdim=stay)).to(data.dtype)


def _log_sum_exp(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    floating = data if data.is_floating_point() else data.double()
    return torch.logsumexp(floating, axes, keepdim=stay).to(data.dtype)


def _maximum(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    return torch.amax(data, axes, keepdim=stay)


def _minimum(data: Tensor, axes: tuple[int, ...], stay: bool) -> Tensor:
    return torch.amin(data, axes, keepdim=stay)


def _position(function: Callable[..., Tensor]) -> Operator:
    """Return the position of an extreme; torch takes the first of equal ones."""

    def build(node: ir.Node) -> Kernel:
        axis, stay = int(attribute(node, "axis", 0)), bool(attribute(node, "keepdims", 1))
        last = bool(attribute(node, "select_last_index", 0))

        def kernel(inputs: Inputs, run: Run) -> Tensor:
            data = needed(inputs, 0)
            if not last:
                return function(data, axis, keepdim=stay)
            return data.shape[axis] - 1 - function(data.flip(axis), axis, keepdim=stay)

        return kernel

    return Operator(build)


def _running(function: Callable[..., Tensor], *, neutral: int) -> Operator:
    """Return sums, or products, of all positions up to each."""

    def build(node: ir.Node) -> Kernel:
        exclusive, backwards = bool(attribute(node, "exclusive", 0)), bool(attribute(node, "reverse", 0))

        def kernel(inputs: Inputs, run: Run) -> Tensor:
            data, axis = needed(inputs, 0), (numbers(inputs, 1) or [0])[0]
            data = data.flip(axis) if backwards else data
            made = function(data, axis, dtype=data.dtype)
            if exclusive:
                first = torch.full_like(data.narrow(axis, 0, min(1, data.shape[axis])), neutral)
                made = torch.cat((first, made.narrow(axis, 0, max(0, data.shape[axis] - 1))), axis)
            return made.flip(axis) if backwards else made

        return kernel

    return Operator(build, settings=(1,))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "ReduceSum": _reduction(_sum),
        "ReduceMean": _reduction(_mean),
        "ReduceProd": _reduction(_product),
        "ReduceMax": _reduction(_maximum),
        "ReduceMin": _reduction(_minimum),
        "ReduceL1": _reduction(_norm(1)),
        "ReduceL2": _reduction(_norm(2)),
        "ReduceSumSquare": _reduction(_square_sum),
        "ReduceLogSum": _reduction(_log_sum),
        "ReduceLogSumExp": _reduction(_log_sum_exp),
        "ArgMax": _position(torch.argmax),
        "ArgMin": _position(torch.argmin),
        "CumSum": _running(torch.cumsum, neutral=0),
        "CumProd": _running(torch.cumprod, neutral=1),
    }
)
