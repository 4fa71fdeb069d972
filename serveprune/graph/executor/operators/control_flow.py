"""Nodes with graphs inside: they get these as functions of their inputs."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
from torch import Tensor

from serveprune.graph.executor.operator import needed

Body = Callable[[Sequence[Tensor]], list[Tensor]]
"""A graph inside a node: takes its inputs, returns its outputs; what it reads from outside it has."""

FlowKernel = Callable[[Sequence[Tensor | None], Mapping[str, Body]], Sequence[Tensor]]
"""Computes a node from its inputs and its bodies, by attribute."""


def _if(node: ir.Node) -> FlowKernel:
    return lambda inputs, bodies: bodies["then_branch" if bool(needed(inputs, 0)) else "else_branch"](())


FLOW: Mapping[str, Callable[[ir.Node], FlowKernel]] = MappingProxyType({"If": _if})
