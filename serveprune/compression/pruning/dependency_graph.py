from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.carriers import choose_carriers
from serveprune.compression.pruning.coupling.contraction import Contraction
from serveprune.compression.pruning.coupling.table import apply_rule, known
from serveprune.compression.pruning.coupling.walk import AttentionPart, Carrier, Walk
from serveprune.compression.pruning.observation import Observation
from serveprune.compression.pruning.residual_blocks import ResidualBlock, find_blocks
from serveprune.compression.pruning.units import Ids, RemovalUnits
from serveprune.graph.node import operator

Kind = Literal["channels", "neurons", "heads", "head_dims"]
_DEFAULT_OPSET = 18


@dataclass(frozen=True, slots=True)
class WeightSlice:
    """What one group owns of one constant.

    Attributes:
        name: The constant.
        axis: The axis that gets shorter when units go.
        positions: ``(units, positions per unit)``: the positions along the axis that belong to each unit.
    """

    name: str
    axis: int
    positions: Ids


@dataclass(frozen=True, slots=True)
class PruningGroup:
    """Units of one kind that live on the same weights: the channels of a layer, the heads of an attention.

    Attributes:
        name: Name of the first constant that makes the units; a second group on it ends in ``:2``.
        units: Unit ids, in the order of their positions.
        slices: Every constant with a position of the units.
        contractions: Where the units are summed over, which is where their removal is felt.
    """

    name: str
    kind: Kind
    units: Ids
    slices: tuple[WeightSlice, ...]
    contractions: tuple[Contraction, ...]

    @property
    def width(self) -> int:
        """How many units there are."""
        return len(self.units)


@dataclass(frozen=True, slots=True)
class PinnedAxis:
    """A weight axis that stays whole, or in part, and why."""

    name: str
    axis: int
    width: int
    reason: str


class DependencyGraph:
    """Which weight slices of a graph can only go together, and which cannot go at all."""

    def __init__(self, model: ir.Model, observation: Observation, *, attention: AttentionPart = "heads") -> None:
        """Walk the graph twice: what the parts of split axes are, then what couples with what.

        Args:
            model: Constants are initializers, none shared where that couples what need not be coupled; functions
                are inlined.
            observation: Shapes of all values.
            attention: What carries the units where a channel axis is split into heads and their dims.
        """
        self._constants = dict(model.graph.initializers)
        first = _walk(model, observation, attention, carriers=None)
        self._walk = _walk(model, observation, attention, carriers=choose_carriers(first))
        self.unknown_operators = tuple(sorted({operator(node) for node in model.graph if not known(node)}))
        self.groups, self.pinned = self._collect()
        self.blocks: tuple[ResidualBlock, ...] = find_blocks(model.graph, observation)
        self._gone: tuple[frozenset[int], np.ndarray] = (frozenset(), np.zeros(len(self._walk.units), np.bool_))

    def axes(self, value: str) -> Axes:
        """Return the unit ids of a value's axes.

        An axis of dynamic size that has ids repeats them: the unit of each position is ``ids[position % len(ids)]``.
        """
        return self._walk.axes.get(value, ())

    def roots(self, ids: Ids) -> Ids:
        """Return the unit that stands for each of these and all it is joined with, as in `PruningGroup.units`."""
        return self._walk.units.roots(ids)

    def removed_positions(self, ids: Ids | None, removed: frozenset[int]) -> Ids:
        """Return which positions of an axis go when these units go."""
        if ids is None or not removed:
            return np.zeros(0, np.int64)
        if self._gone[0] is not removed:
            gone = np.zeros(len(self._walk.units), np.bool_)
            gone[self._walk.units.roots(np.fromiter(removed, np.int64, len(removed)))] = True
            self._gone = (removed, gone)
        return np.flatnonzero(self._gone[1][self._walk.units.roots(ids)])

    @property
    def contractions(self) -> tuple[Contraction, ...]:
        """Everywhere an axis with units is summed over."""
        return tuple(self._walk.contractions)

    def why_pinned(self) -> tuple[tuple[str, int], ...]:
        """Return the reasons why weight axes stay whole, each with their number, the most frequent first."""
        counts: dict[str, int] = defaultdict(int)
        for axis in self.pinned:
            counts[axis.reason] += 1
        return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def describe(self) -> str:
        """Return what couples with what, and what is pinned and why, one line each, for people."""
        lines = []
        for group in self.groups:
            slices = ", ".join(f"{piece.name}[{piece.axis}]" for piece in group.slices)
            lines.append(f"{group.name}: {group.width} {group.kind}: {slices}")
        lines += [f"{block.name}: a residual block of {len(block.nodes)} nodes" for block in self.blocks]
        if not self.groups:
            lines.append("nothing can be pruned")
        lines += [f"pinned {count}x: {reason}" for reason, count in self.why_pinned()]
        return "\n".join(lines)

    def _collect(self) -> tuple[tuple[PruningGroup, ...], tuple[PinnedAxis, ...]]:
        units = self._walk.units
        places: list[tuple[str, int]] = []
        owned: dict[int, list[tuple[int, Ids]]] = defaultdict(list)
        pinned = []
        # Constants come in the order in which the walk met them, which is that of the graph.
        for name, axes in self._walk.axes.items():
            for axis, ids in enumerate(axes if name in self._constants else ()):
                if ids is None or not len(ids):
                    continue
                kept = units.pinned(ids)
                if kept.any() and len(ids) > 1:
                    reason = units.pinned_because(int(ids[np.argmax(kept)]))
                    pinned.append(PinnedAxis(name, axis, len(ids), reason or ""))
                for root, positions in _by_root(units.roots(ids), np.flatnonzero(~kept)):
                    owned[root].append((len(places), positions))
                places.append((name, axis))
        reached = self._contractions_by_unit()
        by_signature: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for root, held in owned.items():
            if root in reached:
                weights = tuple((place, len(positions)) for place, positions in held)
                by_signature[weights, tuple(reached[root])].append(root)
        groups = [
            self._group(roots, places, owned, [self._walk.contractions[index] for index in reached[roots[0]]])
            for roots in by_signature.values()
            if len(roots) > 1
        ]
        return _named(groups), tuple(pinned)

    def _contractions_by_unit(self) -> Mapping[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for index, contraction in enumerate(self._walk.contractions):
            roots = self._walk.units.roots(contraction.ids)
            for root in np.unique(roots[~self._walk.units.pinned(roots)]).tolist():
                found[root].append(index)
        return found

    def _group(
        self,
        roots: list[int],
        places: list[tuple[str, int]],
        owned: Mapping[int, list[tuple[int, Ids]]],
        contractions: list[Contraction],
    ) -> PruningGroup:
        slices = tuple(
            WeightSlice(*places[place], np.stack([owned[root][index][1] for root in roots]))
            for index, (place, _) in enumerate(owned[roots[0]])
        )
        summed = {
            (contraction.weight[0].name, contraction.weight[1]) for contraction in contractions if contraction.weight
        }
        made = [piece for piece in slices if (piece.name, piece.axis) not in summed]
        matrices = [piece for piece in made if len(self._walk.axes[piece.name]) > 1]
        first = (matrices or made or slices)[0]
        return PruningGroup(first.name, self._kind(roots[0], slices), np.array(roots), slices, tuple(contractions))

    def _kind(self, root: int, slices: tuple[WeightSlice, ...]) -> Kind:
        for ids, part in self._walk.marks:
            if root in self._walk.units.roots(ids):
                return part
        return "channels" if any(piece.name in self._walk.kernels for piece in slices) else "neurons"


def _walk(
    model: ir.Model,
    observation: Observation,
    attention: AttentionPart,
    *,
    carriers: Mapping[tuple[str, int], Carrier] | None,
) -> Walk:
    opset = model.graph.opset_imports.get("", _DEFAULT_OPSET)
    walk = Walk(RemovalUnits(), observation, attention, opset, carriers)
    for value in model.graph.inputs:
        walk.of(value)
    for node in model.graph:
        made = apply_rule(node, walk)
        for index, output in enumerate(node.outputs):
            if output.name:
                walk.axes[output.name] = made[index] if index < len(made) else walk.without_units(output)
        for value in _values_used_inside(node):
            walk.keep(walk.of(value), f"used inside the body of {operator(node)}")
    for output in model.graph.outputs:
        walk.keep(walk.of(output), "is an output of the graph")
    return walk


def _by_root(roots: Ids, free: Ids) -> Iterable[tuple[int, Ids]]:
    """Yield each root with its positions, in the order of the first, among the free positions of an axis."""
    if not len(free):
        return
    order = np.argsort(roots[free], kind="stable")
    sorted_roots = roots[free][order]
    starts = np.flatnonzero(np.r_[True, sorted_roots[1:] != sorted_roots[:-1]])
    runs = np.split(free[order], starts[1:])
    yield from sorted(zip(sorted_roots[starts].tolist(), runs, strict=True), key=lambda item: int(item[1][0]))


def _named(groups: list[PruningGroup]) -> tuple[PruningGroup, ...]:
    """Tell apart groups that begin in the same constant."""
    seen: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        seen[group.name] += 1
        name = group.name if seen[group.name] == 1 else f"{group.name}:{seen[group.name]}"
        named.append(PruningGroup(name, group.kind, group.units, group.slices, group.contractions))
    return tuple(named)


def _values_used_inside(node: ir.Node) -> Iterable[ir.Value]:
    """Values of the outer graph that the bodies of an If, Loop or Scan read."""
    for graph in _bodies(node):
        inside = {id(output) for inner in graph for output in inner.outputs} | set(map(id, graph.inputs))
        for inner in graph:
            yield from (value for value in inner.inputs if value is not None and id(value) not in inside)
            yield from _values_used_inside(inner)
        yield from (value for value in graph.outputs if id(value) not in inside)


def _bodies(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found
