"""The nodes of a graph, ready to run one after the other."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import Inputs, Kernel, Rounding, Run
from serveprune.graph.executor.operators.control_flow import FLOW, Body
from serveprune.graph.executor.table import OPERATORS
from serveprune.graph.node import label, operator

_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Step:
    """A node, ready to run.

    Attributes:
        settings: Input slots that stay on the CPU.
        freed: Values that nothing reads after this step.
    """

    kernel: Kernel
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    settings: frozenset[int]
    freed: tuple[str, ...]


class Program:
    """A graph, or a body of control flow, as kernels in order."""

    def __init__(self, graph: ir.Graph, *, name: str) -> None:
        """Make the kernels.

        Args:
            graph: Its nodes in an order in which they can run.
            name: Of the model, for messages.

        Raises:
            InvalidArgument: An operator that the executor lacks.
        """
        self.inputs = tuple(value.name or "" for value in graph.inputs)
        self.outputs = tuple(value.name or "" for value in graph.outputs)
        nodes = list(graph)
        self.made = frozenset(output.name for node in nodes for output in node.outputs if output.name)
        """Names of the values that its nodes compute."""
        reads = [_reads(node) for node in nodes]
        last = {read: index for index, found in enumerate(reads) for read in found if read}
        kept = {*_captured(graph), *graph.initializers, *self.outputs}
        self._steps = [
            _Step(
                _kernel(node, reads=found, name=name),
                tuple(found),
                tuple(output.name or None for output in node.outputs),
                frozenset(_settings(node)),
                tuple({read for read in found if read and last[read] == index and read not in kept}),
            )
            for index, (node, found) in enumerate(zip(nodes, reads, strict=True))
        ]

    def run(
        self,
        known: dict[str, Tensor],
        run: Run,
        *,
        keep: AbstractSet[str] = frozenset(),
        scales: Mapping[str, Tensor] | None = None,
        roundings: Mapping[str, Rounding] | None = None,
    ) -> None:
        """Compute all nodes.

        Args:
            known: Constants, inputs and captured values; takes the values that are computed, of which only the outputs
                and those to keep are there in the end.
            run: What kernels may ask.
            keep: Names of values to keep besides the outputs.
            scales: Factors that values are multiplied with as soon as they are known.
            roundings: Functions that values go through then.
        """
        for step in self._steps:
            inputs: Inputs = [None if name is None else known[name] for name in step.inputs]
            if run.device != _HOST:
                inputs = _placed(inputs, step.settings, run.device)
            made = step.kernel(inputs, run)
            outputs: Sequence[Tensor | None] = (made,) if isinstance(made, Tensor) else made
            for name, value in zip(step.outputs, outputs, strict=False):
                if name is not None and value is not None:
                    scaled = value * scales[name] if scales and name in scales else value
                    known[name] = roundings[name](scaled) if roundings and name in roundings else scaled
            for name in step.freed:
                if name not in keep:
                    known.pop(name, None)


def _kernel(node: ir.Node, *, reads: Sequence[str | None], name: str) -> Kernel:
    known = operator(node)
    if known in OPERATORS:
        return OPERATORS[known].build(node)
    if known not in FLOW:
        raise InvalidArgument(
            f"{name}: gradients need every operator of the graph, and {known} ({label(node)}) has no differentiable "
            "kernel here; leave out the pass that learns, or export the model without it"
        )
    flow = FLOW[known](node)
    programs = {attribute: Program(body, name=name) for attribute, body in _bodies(node).items()}

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor | None]:
        around = {read: value for read, value in zip(reads, inputs, strict=True) if read and value is not None}

        def bound(program: Program) -> Body:
            def body(given: Sequence[Tensor]) -> list[Tensor]:
                known = {**around, **dict(zip(program.inputs, given, strict=True))}
                program.run(known, run)
                return [known[output] for output in program.outputs]

            return body

        own = inputs[: len(node.inputs)]
        return flow(own, {attribute: bound(program) for attribute, program in programs.items()})

    return kernel


def _settings(node: ir.Node) -> tuple[int, ...]:
    """Return the slots that stay on the CPU; of control flow none, for its bodies read the same values."""
    found = OPERATORS.get(operator(node))
    return found.settings if found else ()


def _reads(node: ir.Node) -> list[str | None]:
    """Return the names of a node's inputs, None for those left out, and then of what its bodies read from outside."""
    own = [None if value is None else value.name for value in node.inputs]
    inner = [read for body in _bodies(node).values() for read in _captured(body)]
    return [*own, *dict.fromkeys(inner)]


def _captured(graph: ir.Graph) -> list[str]:
    made = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    made.update(output.name for node in graph for output in node.outputs)
    read = [name for node in graph for name in _reads(node) if name]
    read += [value.name or "" for value in graph.outputs]
    return [name for name in read if name not in made]


def _bodies(node: ir.Node) -> dict[str, ir.Graph]:
    return {
        attribute.name: attribute.as_graph()
        for attribute in node.attributes.values()
        if attribute.type is ir.AttributeType.GRAPH
    }


def _placed(inputs: Inputs, settings: frozenset[int], device: torch.device) -> Inputs:
    """Bring settings to the CPU, and what meets a tensor of the device to the device."""
    meets = any(
        value is not None and value.device == device for slot, value in enumerate(inputs) if slot not in settings
    )
    return [
        value if value is None else value.to(_HOST) if slot in settings else value.to(device) if meets else value
        for slot, value in enumerate(inputs)
    ]
