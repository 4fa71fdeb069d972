"""What each operator couples: the table a new operator is taught to.

A rule takes the unit ids of a node's input axes and returns those of its output axes, joining and pinning units
on the way. Whatever has no rule pins all that reaches it: an unknown operator shrinks what can be pruned, it
never breaks a model.
"""

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling import (
    attention,
    convolution,
    elementwise,
    normalization,
    product,
    recurrent,
    reshaping,
    selection,
)
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.graph.node import operator

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **elementwise.RULES,
        **product.RULES,
        **convolution.RULES,
        **normalization.RULES,
        **reshaping.RULES,
        **selection.RULES,
        **attention.RULES,
        **recurrent.RULES,
    }
)
"""Operator -> rule. Operators of other domains are keyed ``domain::Operator``."""


def known(node: ir.Node) -> bool:
    """Tell whether the table has a rule for this node."""
    return operator(node) in RULES


def apply_rule(node: ir.Node, walk: Walk) -> list[Axes]:
    """Return the unit ids of a node's outputs, by its rule or by pinning everything."""
    found = RULES.get(operator(node))
    if found is None:
        return walk.pinned(node, f"not understood, kept: {operator(node)}")
    return found(node, walk)
