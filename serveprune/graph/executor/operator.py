"""What the executor knows of an operator: how to make a kernel of a node, and what its constants are for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """What a kernel may ask about the run it is part of.

    Attributes:
        training: Whether the module is in training mode (statistics of the batch, dropout).
        device: Where the weights are.
        moved_to: The dtype the module was moved to; None while it has the dtype of the file.
    """

    training: bool
    device: torch.device
    moved_to: torch.dtype | None = None

    def dtype(self, declared: ir.DataType) -> torch.dtype:
        """Return what a dtype of the file means in this run: in a module that was moved, floats are the new ones."""
        if self.moved_to is not None and declared.is_floating_point():
            return self.moved_to
        return tensor_adapters.to_torch_dtype(declared)


Inputs = Sequence[Tensor | None]
"""One tensor per slot of the node; None where an optional input is absent."""

Kernel = Callable[[Inputs, Run], Tensor | Sequence[Tensor | None]]
"""Computes a node. A tensor is the only output; a sequence has one entry per output."""


Rounding = Callable[[Tensor], Tensor]
"""Brings a value to what an integer could hold of it; gradients pass."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of the table.

    Attributes:
        build: Makes the kernel of one node, whose attributes it reads once. Raises `InvalidArgument` for a form of the
            operator that the executor lacks.
        weights: Slots in which a floating constant is something learned.
        settings: Slots that say what to do (a shape, axes, limits). What is there is on the CPU when the kernel runs,
            wherever the weights are, so that reading it costs nothing.
        statistics: Slots of running statistics, which training mode updates in place.
    """

    build: Callable[[ir.Node], Kernel]
    weights: tuple[int, ...] = ()
    settings: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()


def needed(inputs: Inputs, slot: int) -> Tensor:
    """Return an input that the operator cannot do without."""
    value = inputs[slot]
    assert value is not None
    return value


def optional(inputs: Inputs, slot: int) -> Tensor | None:
    """Return an input that may be absent, also when the node has fewer slots."""
    return inputs[slot] if slot < len(inputs) else None


def numbers(inputs: Inputs, slot: int) -> list[int] | None:
    """Return the integers in a settings slot, None if it is absent."""
    value = optional(inputs, slot)
    return None if value is None else [int(item) for item in value.reshape(-1).tolist()]


def opset(node: ir.Node) -> int:
    """Return the version of the operator set that a node of ONNX's own domain belongs to."""
    assert node.version is not None, "the executor notes the version of every node before it makes kernels"
    return node.version
