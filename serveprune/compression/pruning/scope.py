from collections import Counter
from fnmatch import fnmatchcase

import onnx_ir as ir

from serveprune.compression.plan_report import without_node
from serveprune.compression.pruning.consumers import consumers_of
from serveprune.compression.pruning.dependency_graph import DependencyGraph, PruningGroup
from serveprune.compression.pruning.target import candidate_widths
from serveprune.config.pruning import PruneOptions
from serveprune.errors import InvalidArgument
from serveprune.graph.node import key

_MOST_REASONS = 4

_KINDS = {"auto": ("channels", "neurons", "heads"), "blocks": ("channels", "neurons", "heads")}
_WITH_BLOCKS = ("auto", "blocks")


class PruningScope:
    """What of a graph may go by the profile's options.

    Attributes:
        indices: Of the groups that may lose units.
        blocks: Residual block that may go as a whole -> the indices of the groups inside.
    """

    def __init__(self, graph: DependencyGraph, options: PruneOptions, *, model: ir.Model) -> None:
        """Look at all groups and blocks.

        Args:
            graph: What couples with what.
            options: The profile's.
            model: That the graph was made from.

        Raises:
            InvalidArgument: Nothing may go, or a pattern to ignore matches nothing.
        """
        self._graph = graph
        self._options = options
        self.indices = tuple(index for index, group in enumerate(graph.groups) if self.why_left_out(group) is None)
        if not self.indices:
            raise InvalidArgument(f"prune: nothing in this graph can be removed; kept whole: {self.kept_whole()}")
        self._require_matches(model)
        self.blocks = self._removable_blocks()

    def why_left_out(self, group: PruningGroup) -> str | None:
        """Return why a group of the graph stays whole whatever the target; ``None`` if it may shrink."""
        structure = self._options.structure
        if group.kind not in _KINDS.get(structure, (structure,)):
            return f"structure: {structure} leaves {group.kind} whole"
        names = [piece.name for piece in group.slices]
        names += [contraction.node.name or "" for contraction in group.contractions]
        for pattern in self._options.ignore:
            if any(fnmatchcase(name, pattern) for name in names):
                return f"ignore: {pattern}"
        if not consumers_of(group):
            return "no layer with weights of its own reads it, so nothing could make up for the loss"
        return None

    def groups_inside(self, block: str) -> tuple[str, ...]:
        """Return the names of the groups inside a block that may go."""
        return tuple(self._graph.groups[index].name for index in self.blocks[block])

    def _require_matches(self, model: ir.Model) -> None:
        """Refuse a pattern to ignore that matches nothing: it was meant to protect something."""
        names = {node.name or "" for node in model.graph} | set(model.graph.initializers)
        for pattern in self._options.ignore:
            if not any(fnmatchcase(name, pattern) for name in names):
                weights = ", ".join(sorted({group.name for group in self._graph.groups}))
                raise InvalidArgument(
                    f"prune: the ignore pattern {pattern!r} matches no weight and no node of the graph; weights that "
                    f"can shrink are: {weights[:500]}"
                )

    def _removable_blocks(self) -> dict[str, tuple[int, ...]]:
        """Return the blocks that may go, with the groups inside each; a group is inside the smallest one only."""
        if self._options.structure not in _WITH_BLOCKS:
            return {}
        found: dict[str, tuple[int, ...]] = {}
        taken: set[int] = set()
        for block in sorted(self._graph.blocks, key=lambda block: len(block.nodes)):
            nodes = set(block.nodes)
            inside = tuple(
                index
                for index in self.indices
                if index not in taken
                and all(key(contraction.node) in nodes for contraction in self._graph.groups[index].contractions)
            )
            # What holds no group costs what no table knows, and a block around another is left to that one.
            if inside and not nodes & {name for other in found for name in self._nodes_of(other)}:
                found[block.name] = inside
                taken.update(inside)
        return found

    def _nodes_of(self, name: str) -> tuple[str, ...]:
        return next(block.nodes for block in self._graph.blocks if block.name == name)

    def candidate_widths(self) -> list[tuple[int, ...]]:
        """Return the widths every group of the graph may get; its own alone where it may not shrink."""
        narrows = self._options.structure != "blocks"
        return [
            candidate_widths(group, round_to=self._options.round_to)
            if narrows and index in self.indices
            else (group.width,)
            for index, group in enumerate(self._graph.groups)
        ]

    def kept_whole(self) -> str:
        """Return why the others stay whole, the most frequent reasons first."""
        left_out = Counter(filter(None, map(self.why_left_out, self._graph.groups)))
        pinned = Counter(without_node(axis.reason) for axis in self._graph.pinned)
        reasons = [*left_out.most_common(_MOST_REASONS), *pinned.most_common(_MOST_REASONS)]
        return "; ".join(f"{reason} ({count})" for reason, count in reasons) or "everything"
