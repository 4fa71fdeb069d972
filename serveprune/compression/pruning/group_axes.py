from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.units import Ids


@dataclass(frozen=True, slots=True)
class AxisSize:
    """How long an axis is, by the widths of the groups.

    Attributes:
        fixed: Positions that stay.
        per_unit: Group index -> positions that each of its units has.
    """

    fixed: int
    per_unit: Mapping[int, int]


class GroupAxes:
    """Which groups the axes of values belong to."""

    def __init__(self, graph: DependencyGraph) -> None:
        self._graph = graph
        self._groups: dict[int, int] = {}
        for index, group in enumerate(graph.groups):
            for piece in group.slices:
                ids = graph.axes(piece.name)[piece.axis]
                assert ids is not None
                self._groups.update(dict.fromkeys(ids[piece.positions.ravel()].tolist(), index))
        self.widths = np.array([group.width for group in graph.groups], np.int64)

    def size(self, ids: Ids | None, *, length: int) -> AxisSize:
        """Return the size of an axis that is ``length`` long before anything is removed."""
        if ids is None:
            return AxisSize(length, {})
        counts: dict[int, int] = {}
        for unit in ids.tolist():
            group = self._groups.get(unit)
            if group is not None:
                counts[group] = counts.get(group, 0) + 1
        per_unit = {group: count // int(self.widths[group]) for group, count in counts.items()}
        covered = sum(count * int(self.widths[group]) for group, count in per_unit.items())
        return AxisSize(length - covered, per_unit)

    def sizes(self, value: str, *, shape: tuple[int, ...]) -> tuple[AxisSize, ...]:
        """Return the sizes of all axes of a value."""
        axes = self._graph.axes(value) or (None,) * len(shape)
        return tuple(self.size(ids, length=length) for ids, length in zip(axes, shape, strict=True))

    def touching(self, node: ir.Node) -> tuple[int, ...]:
        """Return the groups that change the shape of what a node reads or makes, in order of appearance."""
        found: dict[int, None] = {}
        for value in _values(node):
            for ids in self._graph.axes(value.name or ""):
                if ids is not None:
                    found.update((self._groups[unit], None) for unit in ids.tolist() if unit in self._groups)
        return tuple(found)


def _values(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    yield from node.outputs
