from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from serveprune.compression.kept_channels import KeptChannels, KeptPositions
from serveprune.compression.pruning.dependency_graph import DependencyGraph


def remaining_channels(model: ir.Model, graph: DependencyGraph, removed: Iterable[int]) -> KeptChannels:
    """Return what a removal of units leaves of the values that nodes compute; those it leaves whole are not named.

    Args:
        model: The graph before the removal.
        graph: What goes together in it.
        removed: Unit ids.
    """
    gone = frozenset(removed)
    found: dict[str, dict[int, KeptPositions]] = {}
    for name in (output.name or "" for node in model.graph for output in node.outputs):
        for axis, ids in enumerate(graph.axes(name)):
            positions = graph.removed_positions(ids, gone)
            if ids is not None and len(positions):
                left = np.delete(np.arange(len(ids), dtype=np.int64), positions)
                found.setdefault(name, {})[axis] = KeptPositions(len(ids), left)
    return found
