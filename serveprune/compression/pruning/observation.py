"""Which axes of which values have a size of their own: seen, not inferred."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.graph.onnx_file import MAX_EMBEDDED_BYTES
from serveprune.graph.onnx_source import probe_inputs
from serveprune.graph.probe import AXIS_SIZES, ProbeInput, axis_assignment, generate_feeds
from serveprune.oip.tensor import Array

Shape = tuple[int | None, ...]
"""Sizes of all axes; ``None`` is dynamic: it followed the inputs."""

_BATCHES = (2, 3)
"""Neither is 1, which a Squeeze or a broadcast would take for an axis without extent."""

_MAKE_NO_TENSOR = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence"}
    | {"Optional", "OptionalGetElement", "ZipMap"}
)


@dataclass(frozen=True, slots=True)
class Observation:
    """Shapes of every value of a graph under two differently sized inputs.

    Attributes:
        first: Value name -> shape under the first input.
        second: Value name -> shape under the second input, of which no dynamic size equals the first's.
    """

    first: Mapping[str, tuple[int, ...]]
    second: Mapping[str, tuple[int, ...]]

    def shape(self, name: str) -> Shape | None:
        """Return the static sizes of a value, ``None`` for dynamic ones; ``None`` if the value was not seen."""
        one, other = self.first.get(name), self.second.get(name)
        if one is None or other is None or len(one) != len(other):
            return None
        return tuple(size if size == twin else None for size, twin in zip(one, other, strict=True))


def observe(model: ir.Model, feeds: Sequence[Mapping[str, Array]], *, workspace: Path) -> Observation:
    """Run the graph under two inputs with every value as an output, and note the shapes.

    Args:
        model: The graph; not changed.
        feeds: Two sets of inputs, of different batch and other dynamic sizes.
        workspace: Where the instrumented graph is written.
    """
    session = OnnxRuntimeBackend().load(_instrumented(model, workspace=workspace))
    outputs = [spec.name for spec in session.outputs]
    seen = []
    for feed in feeds:
        shapes = dict(zip(outputs, map(np.shape, session.run(feed, outputs=outputs)), strict=True))
        seen.append(shapes | {name: np.shape(array) for name, array in feed.items()})
    first, second = seen
    return Observation(first, second)


def observe_sizes(model: ir.Model, *, workspace: Path, sample: Mapping[str, Array] | None = None) -> Observation:
    """Observe a graph under inputs of two sizes that it takes.

    Args:
        model: The graph; not changed.
        workspace: Where the instrumented graph is written.
        sample: One calibration sample, arrays without batch axis, whose values are repeated to every size;
            without it floats are made up from a normal distribution and integers are 0 or 1.

    Raises:
        InvalidArgument: The graph takes no size that was tried; the message holds its last complaint.
    """
    header = onnx.ModelProto()
    header.graph.input.extend(
        ir.serde.serialize_value(value) for value in model.graph.inputs if value.const_value is None
    )
    inputs = probe_inputs(header, label=model.graph.name or "graph")
    complaint = ""
    for feeds in sized_feeds(inputs, sample=sample):
        try:
            return observe(model, feeds, workspace=workspace)
        except ServePruneError as error:
            complaint = error.message
    sizes = ", ".join(f"{one} and {other}" for one, other in AXIS_SIZES)
    raise InvalidArgument(
        f"the graph ran with none of the input sizes tried (batch {_BATCHES[0]} and {_BATCHES[1]}, other dynamic axes "
        f"{sizes}): {complaint}; give calibration samples the graph takes, or fix the sizes of its inputs"
    )


def sized_feeds(
    inputs: Sequence[ProbeInput], *, sample: Mapping[str, Array] | None = None
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Yield pairs of feeds, of which no dynamic axis has the same size in both; see `observe_sizes`."""
    own = _own_sizes(inputs, sample)
    for pair in (*own, *AXIS_SIZES):
        first, second = (
            _feeds(inputs, batch=batch, size=size, sample=sample) for batch, size in zip(_BATCHES, pair, strict=True)
        )
        yield first, second


def _own_sizes(inputs: Sequence[ProbeInput], sample: Mapping[str, Array] | None) -> list[tuple[int, int]]:
    """Return the size of the sample's own dynamic axis with its half, which a model trained on it most likely takes."""
    for value in inputs:
        array = None if sample is None else sample.get(value.name)
        if array is None:
            continue
        for axis, size in zip(value.shape[1:], array.shape, strict=True):
            if isinstance(axis, str) and size > 3:
                return [(size // 2, size)]
    return []


def _feeds(
    inputs: Sequence[ProbeInput], *, batch: int, size: int, sample: Mapping[str, Array] | None
) -> dict[str, Array]:
    if sample is None:
        return generate_feeds(inputs, batch=batch, size=size)
    sizes = axis_assignment([value.shape for value in inputs], batch=batch, size=size)
    return {
        value.name: _tiled(
            sample[value.name], tuple(sizes[axis] if isinstance(axis, str) else axis for axis in value.shape)
        )
        for value in inputs
    }


def _tiled(array: Array, shape: tuple[int, ...]) -> Array:
    """Repeat and cut an array along each axis, so that each position holds a value that stood at such a place."""
    batched = array[np.newaxis]
    for axis, size in enumerate(shape):
        batched = np.take(batched, np.arange(size) % batched.shape[axis], axis=axis)
    return np.ascontiguousarray(batched)


def _instrumented(model: ir.Model, *, workspace: Path) -> Path:
    proto = ir.to_proto(model)
    given = {output.name for output in proto.graph.output}
    names = [
        name
        for node in proto.graph.node
        if node.op_type not in _MAKE_NO_TENSOR
        for name in node.output
        if name and name not in given
    ]
    # ONNX Runtime infers the types of outputs that do not say theirs.
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = workspace / "observed.onnx"
    large = proto.ByteSize() > MAX_EMBEDDED_BYTES
    onnx.save(proto, path, save_as_external_data=large, location="observed.onnx.data")
    return path
