from dataclasses import dataclass

import onnx_ir as ir

from serveprune.graph.parity import Reference


@dataclass(frozen=True, slots=True)
class SourceGraph:
    """A model as its source gave it, before it is repaired, checked and stored.

    Attributes:
        label: How messages name the source.
        model: The graph in memory.
        references: Inputs with the source framework's own outputs; empty for a source that is ONNX already.
        notes: What was repaired or left out, for people.
    """

    label: str
    model: ir.Model
    references: tuple[Reference, ...] = ()
    notes: tuple[str, ...] = ()
