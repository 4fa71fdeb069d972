from dataclasses import dataclass

import onnx_ir as ir

from serveprune.compression.pruning.units import Ids


@dataclass(frozen=True, slots=True)
class Contraction:
    """Where an axis is summed over: zeroing a position of it there has the effect of removing it.

    Attributes:
        node: The node that sums.
        value: The activation that is contracted.
        axis: Its contracted axis.
        ids: The unit of each position of that axis.
        weight: The constant it is contracted with, if it is one, and that constant's axis. In a grouped Conv that
            axis is shorter than the activation's: one position stands for the same channel of every group.
        slot: Which input of the node the activation is.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    ids: Ids
    weight: tuple[ir.Value, int] | None
    slot: int = 0
