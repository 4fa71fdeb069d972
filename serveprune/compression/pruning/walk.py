"""One run of a graph over all samples, with halts at which what lies ahead may be changed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

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
        segment = self._needed(halt.values)
        limit = len(nodes)
        if halt.before is not None:
            limit = next(index for index, node in enumerate(nodes) if halt.before in {out.name for out in node.outputs})
        final = [node for node in segment if place[_name(node)] < limit]
        self._computed.update(map(_name, final))
        ahead = self._ahead()
        carried = [output.name or "" for node in final for output in node.outputs if output.name in ahead]
        piece = _Piece(self._model, segment, (*halt.values, *carried))
        kept = ahead - (piece.made - set(carried))
        for index, known in enumerate(self._run(piece)):
            yield {name: known[name] for name in halt.values}
            self._held.replace(index, {name: array for name, array in known.items() if name in kept})

    def look_ahead(self, constants: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """Yield the values of the last halt, batch after batch, as they are with other constants; go nowhere.

        Args:
            constants: Arrays by name, of nodes that have yet to run.
        """
        values = self._halts[-1].values
        for known in self._run(_Piece(self._model, self._needed(values), values, constants=constants)):
            yield {name: known[name] for name in values}

    def _run(self, piece: "_Piece") -> Iterator[Mapping[str, Array]]:
        """Yield what is held of each batch together with what the piece makes of it."""
        if not piece.outputs:
            yield from self._held
            return
        session = None
        path = self._workspace / "walked.onnx"
        for held in self._held:
            if session is None:
                onnx.save(piece.proto(held), path)
                session = OnnxRuntimeBackend().load(path, threads=self._threads)
                path.unlink()
            made = session.run({name: held[name] for name in piece.inputs}, outputs=piece.outputs)
            yield {**held, **dict(zip(piece.outputs, made, strict=True))}
        if session is not None:
            session.close()

    def _needed(self, values: Iterable[str]) -> list[ir.Node]:
        """Return the nodes that have yet to run for these values to be known, in order."""
        maker = {output.name or "": node for node in self._model.graph for output in node.outputs}
        found: set[str] = set()
        wanted = list(values)
        while wanted:
            node = maker.get(wanted.pop())
            if node is None or _name(node) in found or _name(node) in self._computed:
                continue
            found.add(_name(node))
            wanted += [value.name or "" for value in _reads(node)]
        return [node for node in self._model.graph if _name(node) in found]

    def _ahead(self) -> set[str]:
        """Return the names of the values that later halts show or need."""
        shown = [name for halt in self._halts for name in halt.values]
        return {*shown, *(value.name or "" for node in self._needed(shown) for value in _reads(node))}


class _Piece:
    """Some nodes of a graph as a graph of their own.

    Attributes:
        made: Names of all values its nodes make.
        inputs: Names of what other nodes made, or the graph is given.
        outputs: Those of the wanted values that it makes.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        wanted: Iterable[str],
        *,
        constants: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        self._model = model
        self._nodes = nodes
        self.made = {output.name or "" for node in nodes for output in node.outputs}
        read = {value.name or "": value for node in nodes for value in _reads(node)}
        known = {name: value.const_value for name, value in read.items() if value.const_value is not None}
        self._constants = {name: constants[name] if name in constants else known[name].numpy() for name in known}
        self.inputs = [name for name in read if name not in known and name not in self.made]
        self.outputs = list(dict.fromkeys(name for name in wanted if name in self.made))

    def proto(self, example: Mapping[str, Array]) -> onnx.ModelProto:
        """Return the piece for inputs like these, of any size."""
        graph = onnx.helper.make_graph(
            [ir.to_proto(node) for node in self._nodes],
            "piece",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(example[name].dtype), [None] * example[name].ndim
                )
                for name in self.inputs
            ],
            # ONNX Runtime infers the types of outputs that do not say theirs.
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
            [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in self._constants.items()],
        )
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
