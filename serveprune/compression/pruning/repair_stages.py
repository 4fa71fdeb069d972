"""What a repair has to fit after a cut, and which outputs are left to fit it to."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from serveprune.compression.pruning.consumers import consumers_of
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.linear import LinearMap
from serveprune.compression.pruning.plan import Plan
from serveprune.graph.node import key

_CHANNELS_FIRST = ("Conv", "BatchNormalization")


def repair_stages(plan: Plan, *, dense: ir.Model, graph: DependencyGraph) -> list[list[LinearMap]]:
    """Return the maps that lost inputs, in the order they run; those of one stage read the same value."""
    lost = {group.name for group in plan.groups if group.after and group.removed}
    wanted = {
        consumer.map.node: consumer.map
        for group in graph.groups
        if group.name in lost
        for consumer in consumers_of(group)
    }
    stages: list[list[LinearMap]] = []
    for node in dense.graph:
        item = wanted.get(key(node))
        if item is None:
            continue
        if stages and stages[-1][0].data == item.data:
            stages[-1].append(item)
        else:
            stages.append([item])
    return stages


def kept_outputs(removed: Collection[int], *, dense: ir.Model, graph: DependencyGraph) -> dict[str, NDArray[np.int64]]:
    """Return the channels that are left of what nodes give, by node; all of those that are not named."""
    gone = frozenset(removed)
    kept = {}
    for node in dense.graph:
        axes = graph.axes(key(node))
        channels = 1 if node.op_type in _CHANNELS_FIRST else -1
        ids = axes[channels] if len(axes) > max(channels, 0) else None
        positions = graph.removed_positions(ids, gone)
        if ids is not None and len(positions):
            kept[key(node)] = np.delete(np.arange(len(ids)), positions)
    return kept
