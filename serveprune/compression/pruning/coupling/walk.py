from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.contraction import Contraction
from serveprune.compression.pruning.observation import Observation, Shape
from serveprune.compression.pruning.units import Ids, RemovalUnits
from serveprune.graph.node import label, required

AttentionPart = Literal["heads", "head_dims"]
"""What goes as a whole where a channel axis is made of heads and their dims."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """Which output axis keeps the units of a split axis, and what that axis holds, if this is known."""

    axis: int
    holds: AttentionPart | None


@dataclass(slots=True)
class Walk:
    """What is known while the graph is walked.

    Attributes:
        opset: Version of the standard operators.
        carriers: Node -> which of its output axes keeps the units where a Reshape splits an axis. ``None`` in the
            first walk, which finds out what the parts are: there each part gets units of its own, kept in ``parts``.
        evidence: What was seen of axes: those that products run over side by side hold heads, those that two
            activations are contracted over, or that products make, hold head dims.
        marks: Units known to be heads or head dims.
        kernels: Names of the constants that are convolution kernels.
        copies: Units of positions that a single one was repeated to: they own nothing, and go with what they meet.
    """

    units: RemovalUnits
    observation: Observation
    attention: AttentionPart
    opset: int = 18
    carriers: Mapping[tuple[str, int], Carrier] | None = None
    axes: dict[str, Axes] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    parts: dict[tuple[str, int], list[tuple[int, Ids]]] = field(default_factory=dict)
    evidence: list[tuple[Ids, AttentionPart]] = field(default_factory=list)
    marks: list[tuple[Ids, AttentionPart]] = field(default_factory=list)
    kernels: set[str] = field(default_factory=set)
    copies: set[int] = field(default_factory=set)

    def shape(self, value: ir.Value | None) -> Shape:
        """Return the sizes of a value, ``None`` for dynamic axes."""
        if value is None:
            return ()
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        shape = self.observation.shape(value.name or "")
        return shape if shape is not None else ()

    def of(self, value: ir.Value | None) -> Axes:
        """Return the unit ids of a value's axes; a constant gets units of its own the first time."""
        if value is None:
            return ()
        name = value.name or ""
        if name not in self.axes:
            shape = self.shape(value)
            tensor = value.const_value
            # Whole numbers count and index; nothing of them can be taken away.
            if tensor is not None and (tensor.dtype.is_floating_point() or tensor.dtype == ir.DataType.BOOL):
                self.axes[name] = tuple(self.units.fresh(size or 0) for size in shape)
            else:
                self.axes[name] = (None,) * len(shape)
        return self.axes[name]

    def pin(self, ids: Ids | None, reason: str) -> None:
        """Pin the units of an axis, if it has any."""
        if ids is not None:
            self.units.pin(ids, reason)

    def keep(self, axes: Iterable[Ids | None], reason: str) -> tuple[None, ...]:
        """Pin the units of all these axes; what is made of them has none."""
        kept: list[None] = []
        for ids in axes:
            self.pin(ids, reason)
            kept.append(None)
        return tuple(kept)

    def couple(self, first: Ids | None, second: Ids | None, reason: str) -> Ids | None:
        """Make two axes one; where one of them can lose nothing, neither can the other."""
        if first is None or second is None or len(first) != len(second):
            self.pin(first, reason)
            self.pin(second, reason)
            return None
        self.units.join(first, second)
        return second if self.holds_copies(first) else first

    def repeated(self, count: int) -> Ids:
        """Return units for the copies of a single position."""
        made = self.units.fresh(count)
        self.copies.update(made.tolist())
        return made

    def holds_copies(self, ids: Ids) -> bool:
        """Tell whether the positions of an axis are copies of one."""
        return len(ids) > 0 and int(ids[0]) in self.copies

    def couple_sizes(self, met: Sequence[tuple[Ids | None, int | None]], node: ir.Node) -> Ids | None:
        """Make axes one that meet by numpy's broadcasting: ids and size of each; a size of 1 meets every position."""
        wide = [ids for ids, size in met if size != 1]
        for ids, size in met:
            if size == 1:
                self.pin(ids, f"is broadcast by {label(node)}")
        if not wide:
            return None
        result = wide[0]
        for ids in wide[1:]:
            result = self.couple(result, ids, f"meets a fixed axis in {label(node)}")
        return result

    def contract(
        self, node: ir.Node, *, slot: int, axis: int, ids: Ids | None, weight: tuple[ir.Value, int] | None
    ) -> None:
        """Note that a node sums over an axis of one of its inputs."""
        if ids is not None:
            self.contractions.append(Contraction(node, required(node, slot), axis, ids, weight, slot))

    def pinned(self, node: ir.Node, reason: str) -> list[Axes]:
        """Keep all that reaches this node whole."""
        for value in node.inputs:
            self.keep(self.of(value), reason)
        return [self.without_units(output) for output in node.outputs]

    def without_units(self, value: ir.Value) -> Axes:
        """Return the axes of a value of which nothing can be removed."""
        return (None,) * len(self.shape(value))


Rule = Callable[[ir.Node, Walk], list[Axes]]
"""Takes a node, returns the unit ids of its outputs' axes, joining and pinning units of its inputs on the way."""
