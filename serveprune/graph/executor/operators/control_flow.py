"""Nodes with graphs inside: they get these as functions of their inputs."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import needed, opset, optional
from serveprune.graph.node import attribute, integers, label

Body = Callable[[Sequence[Tensor]], list[Tensor]]
"""A graph inside a node: takes its inputs, returns its outputs; what it reads from outside it has."""

FlowKernel = Callable[[Sequence[Tensor | None], Mapping[str, Body]], Sequence[Tensor]]
"""Computes a node from its inputs and its bodies, by attribute."""

_SCAN_WITHOUT_BATCH = 9


def _if(node: ir.Node) -> FlowKernel:
    return lambda inputs, bodies: bodies["then_branch" if bool(needed(inputs, 0)) else "else_branch"](())


def _loop(node: ir.Node) -> FlowKernel:
    """Carry values from pass to pass, until a count is reached or a condition is false, and stack what else is made."""

    def kernel(inputs: Sequence[Tensor | None], bodies: Mapping[str, Body]) -> Sequence[Tensor]:
        limit, going = optional(inputs, 0), optional(inputs, 1)
        carried = [needed(inputs, slot) for slot in range(2, len(inputs))]
        goes = going is None or bool(going)
        passes: list[list[Tensor]] = []
        while goes and (limit is None or len(passes) < int(limit)):
            going, *made = bodies["body"]([torch.tensor(len(passes)), torch.tensor(True), *carried])
            carried, goes = made[: len(carried)], bool(going)
            passes.append(made[len(carried) :])
        if not passes:
            return [*carried, *(torch.empty(0) for _ in node.outputs[len(carried) :])]
        return [*carried, *(torch.stack(parts) for parts in zip(*passes, strict=True))]

    return kernel


def _scan(node: ir.Node) -> FlowKernel:
    """Carry values along an axis of other values, and stack what else is made."""
    if opset(node) < _SCAN_WITHOUT_BATCH:
        raise InvalidArgument(f"expected {label(node)} of opset {_SCAN_WITHOUT_BATCH} or later; got {opset(node)}")
    count = int(attribute(node, "num_scan_inputs", 1))
    read_axes = integers(node, "scan_input_axes") or [0] * count
    read_backwards = integers(node, "scan_input_directions") or [0] * count
    made_axes, made_backwards = integers(node, "scan_output_axes"), integers(node, "scan_output_directions")

    def kernel(inputs: Sequence[Tensor | None], bodies: Mapping[str, Body]) -> Sequence[Tensor]:
        given = [needed(inputs, slot) for slot in range(len(inputs))]
        carried, read = given[:-count], given[-count:]
        along = [
            value.flip(axis).unbind(axis) if backwards else value.unbind(axis)
            for value, axis, backwards in zip(read, read_axes, read_backwards, strict=True)
        ]
        passes: list[list[Tensor]] = []
        for parts in zip(*along, strict=True):
            made = bodies["body"]([*carried, *parts])
            carried = made[: len(carried)]
            passes.append(made[len(carried) :])
        stacked = [
            torch.stack(parts[::-1] if backwards else parts, dim=axis)
            for parts, axis, backwards in zip(
                zip(*passes, strict=True),
                made_axes or [0] * len(passes[0]),
                made_backwards or [0] * len(passes[0]),
                strict=True,
            )
        ]
        return [*carried, *stacked]

    return kernel


FLOW: Mapping[str, Callable[[ir.Node], FlowKernel]] = MappingProxyType({"If": _if, "Loop": _loop, "Scan": _scan})
