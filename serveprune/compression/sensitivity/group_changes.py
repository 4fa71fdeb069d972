"""Groups of a graph, narrowed one at a time."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from serveprune.compression.pruning.consumers import consumers_of
from serveprune.compression.pruning.dependency_graph import PruningGroup
from serveprune.compression.pruning.fragment import Fragment, fragments, narrowed, standalone, structure_digest
from serveprune.compression.pruning.group_axes import GroupAxes
from serveprune.compression.pruning.pruning import Pruning
from serveprune.compression.pruning.sensitivity import weights_without
from serveprune.compression.pruning.statistics import collect_moments
from serveprune.compression.pruning.surgery import remove_units
from serveprune.compression.pruning.target import candidate_widths
from serveprune.compression.sensitivity.timing import Gain, Piece, PieceTimer, captured
from serveprune.config.pruning import PruneOptions
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.onnx_file import write_graph

REMOVED_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Narrowing:
    """One group at one width.

    Attributes:
        going: ``(removed,)`` indices into the group's units.
    """

    group: PruningGroup
    going: NDArray[np.int64]

    @property
    def after(self) -> int:
        """Units that are left."""
        return self.group.width - len(self.going)


class GroupChanges:
    """Cuts one group at a time; the layers that read it make up for the loss, nothing else is repaired."""

    def __init__(
        self, pruning: Pruning, options: PruneOptions, *, samples: Dataset, workspace: Path, threads: int
    ) -> None:
        """Rank all units and gather what compensation needs.

        Args:
            pruning: Of the dense graph.
            options: Its options.
            samples: Unlabelled samples.
            workspace: For graphs that lie between.
            threads: Compute threads.
        """
        self._pruning = pruning
        self._workspace = workspace
        self._model = ir.load(pruning.prepared)
        self._weights = {
            name: np.asarray(value.const_value.numpy())
            for name, value in self._model.graph.initializers.items()
            if value.const_value is not None
        }
        groups = [pruning.graph.groups[index] for index in pruning.scope.indices]
        self._moments = collect_moments(
            [consumer.map for group in groups for consumer in consumers_of(group)],
            model=self._model,
            samples=samples,
            workspace=workspace,
            threads=threads,
        )
        self.narrowings = [
            Narrowing(group, found.order.units[: group.width - width])
            for group, found in zip(groups, pruning.study().groups, strict=True)
            for width in _widths(group, round_to=options.round_to)
        ]
        axes = GroupAxes(pruning.graph)
        pieces = fragments(self._model.graph, axes)
        self._touched = {
            group.name: _joined([piece for piece in pieces if index in piece.groups])
            for index, group in enumerate(pruning.graph.groups)
            if index in pruning.scope.indices
        }
        read = [value.name or "" for piece in self._touched.values() for value in piece.inputs]
        self._values = captured(pruning.prepared, read, feeds=pruning.feeds, workspace=workspace)

    def write(self, narrowing: Narrowing, output: Path) -> None:
        """Write the graph with this group cut and its readers' weights fitted anew."""
        model = ir.load(self._pruning.prepared)
        for item in consumers_of(narrowing.group):
            value = model.graph.initializers[item.map.weight]
            fitted = weights_without(item, narrowing.going, self._weights, self._moments)
            value.const_value = ir.tensor(fitted, name=value.name)
        remove_units(model, self._pruning.graph, self._units(narrowing))
        write_graph(model, output)
        # Nodes and values refer to each other: without this, copies of the weights pile up until Python sees to it.
        del model
        gc.collect()

    def gain(self, narrowing: Narrowing, timer: PieceTimer) -> Gain:
        """Return the time that the nodes whose shapes the group decides save."""
        touched = self._touched[narrowing.group.name]
        feeds = {value.name or "": self._values[value.name or ""] for value in touched.inputs}
        whole = standalone(touched, self._model, feeds=feeds)
        cut, cut_feeds = narrowed(whole, self._pruning.graph, removed=self._units(narrowing), feeds=feeds)
        structure = structure_digest(whole.graph) + structure_digest(cut.graph)
        return timer.gain(Piece(ir.to_proto(whole), feeds), Piece(ir.to_proto(cut), cut_feeds), structure=structure)

    def _units(self, narrowing: Narrowing) -> list[int]:
        units: list[int] = narrowing.group.units[narrowing.going].tolist()
        return units


def _widths(group: PruningGroup, *, round_to: int) -> Iterator[int]:
    """Yield the widths nearest to what the shares leave, each once, and never the whole."""
    allowed = np.array(candidate_widths(group, round_to=round_to)[:-1], np.int64)
    wanted = [group.width * (1 - share) for share in REMOVED_SHARES]
    if len(allowed):
        yield from dict.fromkeys(int(allowed[np.abs(allowed - width).argmin()]) for width in wanted)


def _joined(pieces: Sequence[Fragment]) -> Fragment:
    """Return several fragments as one."""
    nodes = [node for piece in pieces for node in piece.nodes]
    inside = {id(node) for node in nodes}
    inputs = {value.name: value for piece in pieces for value in piece.inputs if id(value.producer()) not in inside}
    outputs = {
        value.name: value
        for piece in pieces
        for value in piece.outputs
        if value.is_graph_output() or any(id(user) not in inside for user, _ in value.uses())
    }
    graph = nodes[0].graph
    place = {id(node): index for index, node in enumerate(graph if graph is not None else ())}
    groups = dict.fromkeys(group for piece in pieces for group in piece.groups)
    return Fragment(
        tuple(groups),
        tuple(sorted(nodes, key=lambda node: place[id(node)])),
        tuple(inputs.values()),
        tuple(outputs.values()),
    )
