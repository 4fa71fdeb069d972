"""Who reads the units of a group."""

from serveprune.compression.pruning.dependency_graph import PruningGroup
from serveprune.compression.pruning.importance import Consumer
from serveprune.compression.pruning.linear import LinearMap


def consumers_of(group: PruningGroup) -> tuple[Consumer, ...]:
    """Return the linear maps with constant weights that sum over a group's units.

    Products of two activations and grouped convolutions have no weights of their own for a unit, so they are not
    among them.
    """
    found = []
    for contraction in group.contractions:
        if contraction.weight is None:
            continue
        weight, axis = contraction.weight
        item = LinearMap.of(contraction.node, data=contraction.value, weight=weight, channels_axis=axis)
        piece = next((piece for piece in group.slices if (piece.name, piece.axis) == (weight.name, axis)), None)
        if item is not None and piece is not None:
            found.append(Consumer(item, piece.positions))
    return tuple(found)
