"""One run of a graph over all samples, with halts at which what lies ahead may be changed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.oip.tensor import Array

MOST_HELD_BYTES = 512 * 2**20
"""What a walk carries from halt to halt beyond this lies on disk."""


@dataclass(frozen=True, slots=True)
class Halt:
    """A place in a graph.

    Attributes:
        values: Names of the values one wants to see there.
        before: Name of an output of the first node that may change at this halt; what the values need of it and of
            later nodes is computed again after the halt. ``None``: nothing that was computed changes.
    """

    values: tuple[str, ...]
    before: str | None = None


class Walk:
    """Takes all batches through a graph together, and runs each node about once however many halts there are."""

    def __init__(
        self,
        model: ir.Model,
        halts: Sequence[Halt],
        *,
        batches: Iterable[Mapping[str, Array]],
        workspace: Path,
        threads: int,
        most_held_bytes: int = MOST_HELD_BYTES,
    ) -> None:
        """Stand at the graph's inputs.

        Args:
            model: May be changed between halts: weights, and nodes that are added, behind ``Halt.before``.
            halts: In the order of the graph.
            batches: The inputs.
            workspace: For pieces of the graph, and for what does not fit in memory.
            threads: Compute threads.
            most_held_bytes: Of memory for what is carried from halt to halt.
        """
        self._model = model
        self._halts = list(halts)
        self._workspace = workspace
        self._threads = threads
        self._computed: set[str] = set()
        self._held = _HeldBatches(workspace, most_bytes=most_held_bytes)
        for feeds in batches:
            self._held.append(feeds)

    def advance(self) -> Iterator[dict[str, Array]]:
        """Yield the values of the next halt, batch after batch; they must all be taken."""
        halt = self._halts.pop(0)
        nodes = list(self._model.graph)
        place = {_name(node): index for index, node in enumerate(nodes)}
        maker = {output.name or "": node for node in nodes for output in node.outputs}
        segment = self._needed(halt.values, maker, place)
        limit = len(nodes) if halt.before is None else place[_name(maker[halt.before])]
        self._computed.update(_name(node) for node in segment if place[_name(node)] < limit)
        ahead = self._ahead(maker, place)
        piece = _Piece(self._model, segment, halt.values, ahead=ahead, computed=self._computed)
        if not piece.outputs:
            for index, held in enumerate(self._held):
                yield {name: held[name] for name in halt.values}
                self._held.replace(index, {name: array for name, array in held.items() if name in ahead})
            return
        session = None
        path = self._workspace / "walked.onnx"
        for index, held in enumerate(self._held):
            if session is None:
                onnx.save(piece.proto(held), path)
                session = OnnxRuntimeBackend().load(path, threads=self._threads)
                path.unlink()
            made = session.run({name: held[name] for name in piece.inputs}, outputs=piece.outputs)
            known = {**held, **dict(zip(piece.outputs, made, strict=True))}
            yield {name: known[name] for name in halt.values}
            kept = {name for name in ahead if name in held or name in piece.carried}
            self._held.replace(index, {name: array for name, array in known.items() if name in kept})
        if session is not None:
            session.close()

    def _needed(self, values: Iterable[str], maker: Mapping[str, ir.Node], place: Mapping[str, int]) -> list[ir.Node]:
        """Return the nodes that have yet to run for these values to be known, in order."""
        found: dict[str, ir.Node] = {}
        wanted = list(values)
        while wanted:
            node = maker.get(wanted.pop())
            if node is None or _name(node) in found or _name(node) in self._computed:
                continue
            found[_name(node)] = node
            wanted += [value.name or "" for value in _reads(node)]
        return sorted(found.values(), key=lambda node: place[_name(node)])

    def _ahead(self, maker: Mapping[str, ir.Node], place: Mapping[str, int]) -> set[str]:
        """Return the names of the values that later halts show or need."""
        shown = [name for halt in self._halts for name in halt.values]
        # What the current halt computed beyond its limit is computed again, from values before the limit.
        later = self._needed(shown, maker, place)
        return {*shown, *(value.name or "" for node in later for value in _reads(node))}


class _Piece:
    """Some nodes of a graph as a graph of their own.

    Attributes:
        inputs: Names of what other nodes made, or the graph is given.
        outputs: Names of what is seen or carried on.
        carried: Names of what is carried on; it will not be computed again.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        seen: Iterable[str],
        *,
        ahead: set[str],
        computed: set[str],
    ) -> None:
        self._model = model
        self._nodes = nodes
        made = {output.name or "" for node in nodes for output in node.outputs}
        read = {value.name or "": value for node in nodes for value in _reads(node)}
        self._constants = [value for value in read.values() if value.const_value is not None]
        self.inputs = [name for name, value in read.items() if value.const_value is None and name not in made]
        final = (output.name or "" for node in nodes if _name(node) in computed for output in node.outputs)
        self.carried = {name for name in final if name in ahead}
        self.outputs = list(dict.fromkeys([*(name for name in seen if name in made), *sorted(self.carried)]))

    def proto(self, example: Mapping[str, Array]) -> onnx.ModelProto:
        """Return the piece for inputs like these, of any size."""
        types = {name: onnx.helper.np_dtype_to_tensor_dtype(example[name].dtype) for name in self.inputs}
        graph = onnx.helper.make_graph(
            [ir.to_proto(node) for node in self._nodes],
            "piece",
            [
                onnx.helper.make_tensor_value_info(name, types[name], [None] * example[name].ndim)
                for name in self.inputs
            ],
            # ONNX Runtime infers the types of outputs that do not say theirs.
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
        )
        for value in self._constants:
            assert value.const_value is not None
            graph.initializer.append(onnx.numpy_helper.from_array(value.const_value.numpy(), value.name))
        versions = [onnx.helper.make_opsetid(*each) for each in self._model.graph.opset_imports.items()]
        return onnx.helper.make_model(graph, opset_imports=versions, ir_version=self._model.ir_version)


class _HeldBatches:
    """Values by batch, in memory up to a limit and then in files."""

    def __init__(self, workspace: Path, *, most_bytes: int) -> None:
        self._workspace = workspace
        self._most_bytes = most_bytes
        self._batches: list[Mapping[str, Array] | tuple[Path, tuple[str, ...]]] = []
        self._bytes = 0

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        for index in range(len(self._batches)):
            yield self._read(index)

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Take in one more batch."""
        self._batches.append({})
        self.replace(len(self._batches) - 1, arrays)

    def replace(self, index: int, arrays: Mapping[str, Array]) -> None:
        """Hold these values of a batch instead."""
        before = self._batches[index]
        if isinstance(before, tuple):
            before[0].unlink()
        else:
            self._bytes -= _bytes(before)
        if self._bytes + _bytes(arrays) <= self._most_bytes:
            self._batches[index] = arrays
            self._bytes += _bytes(arrays)
            return
        path = self._workspace / f"held-{id(self)}-{index}.npz"
        np.savez(path, *arrays.values())
        self._batches[index] = (path, tuple(arrays))

    def _read(self, index: int) -> Mapping[str, Array]:
        batch = self._batches[index]
        if not isinstance(batch, tuple):
            return batch
        path, names = batch
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[f"arr_{place}"] for place, name in enumerate(names)}


def _bytes(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _name(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, what its subgraphs take from outside included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        inner = [attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH else attribute.as_graphs()
        for graph in inner:
            own = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
            own.update(id(output) for step in graph for output in step.outputs)
            taken = [value for step in graph for value in _reads(step)]
            yield from (value for value in (*taken, *graph.outputs) if value is not None and id(value) not in own)
