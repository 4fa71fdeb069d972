"""Residual blocks: branches that can be bypassed because what they read has the shape of what they make."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from serveprune.compression.pruning.observation import Observation
from serveprune.graph.node import key, operator

_WITH_WEIGHTS = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "LSTM", "GRU", "RNN"}
    | {"com.microsoft::Attention", "com.microsoft::FusedConv", "com.microsoft::FusedMatMul", "com.microsoft::FusedGemm"}
)


@dataclass(frozen=True, slots=True)
class ResidualBlock:
    """``x + branch(x)``, of which ``x`` alone is left when the block is removed.

    Attributes:
        name: Name of the sum, ``x + branch(x)``.
        bypass: Name of ``x``.
        branch: Name of ``branch(x)``.
        slot: Which of the sum's two inputs the branch is.
        nodes: What only the branch needs, each by its first output, in the order of the graph.
    """

    name: str
    bypass: str
    branch: str
    slot: int
    nodes: tuple[str, ...]


def find_blocks(graph: ir.Graph, observation: Observation) -> tuple[ResidualBlock, ...]:
    """Return the residual blocks of a graph: no other node reads the branch, and all shapes are equal."""
    nodes = list(graph)
    place = {id(node): index for index, node in enumerate(nodes)}
    ancestors = _ancestors(nodes, place)
    found = []
    for node in nodes:
        if operator(node) == "Add":
            block = _block(node, nodes, place, ancestors, observation)
            if block is not None:
                found.append(block)
    return tuple(found)


def _ancestors(nodes: list[ir.Node], place: dict[int, int]) -> list[int]:
    """Return for each node the set of nodes it depends on and itself, as bits."""
    found: list[int] = []
    for index, node in enumerate(nodes):
        bits = 1 << index
        for parent in _parents(node):
            bits |= found[place[id(parent)]]
        found.append(bits)
    return found


def _parents(node: ir.Node) -> Iterable[ir.Node]:
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None:
            yield producer


def _block(
    node: ir.Node, nodes: list[ir.Node], place: dict[int, int], ancestors: list[int], observation: Observation
) -> ResidualBlock | None:
    for slot in (1, 0):
        bypass, branch = node.inputs[1 - slot], node.inputs[slot]
        if bypass is None or branch is None or branch.producer() is None:
            continue
        if not _equal_shapes((bypass, branch, node.outputs[0]), observation):
            continue
        inside = _branch_nodes(bypass, branch, node, nodes, place, ancestors)
        if inside and any(operator(inner) in _WITH_WEIGHTS for inner in inside):
            keys = tuple(key(inner) for inner in inside)
            return ResidualBlock(key(node), bypass.name or "", branch.name or "", slot, keys)
    return None


def _equal_shapes(values: Iterable[ir.Value], observation: Observation) -> bool:
    names = [value.name or "" for value in values]
    return all(
        names[0] in seen and len({seen.get(name) for name in names}) == 1
        for seen in (observation.first, observation.second)
    )


def _branch_nodes(
    bypass: ir.Value,
    branch: ir.Value,
    total: ir.Node,
    nodes: list[ir.Node],
    place: dict[int, int],
    ancestors: list[int],
) -> list[ir.Node] | None:
    """Return the nodes between two values; ``None`` if there are none, or others read what they make."""
    last = branch.producer()
    assert last is not None
    inside: dict[int, ir.Node] = {}
    reached: dict[int, bool] = {}
    start = -1 if bypass.producer() is None else place[id(bypass.producer())]
    if start >= 0 and not ancestors[place[id(last)]] >> start & 1:
        return None
    # A node lies between if it is an ancestor of the branch and reads the bypass, itself or through others.
    above = ancestors[place[id(last)]]
    for index in range(start + 1, place[id(last)] + 1):
        if above >> index & 1:
            inner = nodes[index]
            # Who only asks for the size of x can do so without the branch.
            reads = operator(inner) != "Shape" and any(value is bypass for value in inner.inputs)
            if reads or any(reached.get(place[id(parent)], False) for parent in _parents(inner)):
                reached[index] = True
                inside[id(inner)] = inner
    if id(last) not in inside:
        return None
    for inner in inside.values():
        for output in inner.outputs:
            if output.is_graph_output():
                return None
            if any(id(reader) not in inside and reader is not total for reader, _ in output.uses()):
                return None
    return list(inside.values())
