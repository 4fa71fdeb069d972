"""Which values of the student are compared with which of the teacher, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import onnx_ir as ir

from serveprune.compression.kept_channels import KeptChannels, KeptPositions, read_kept_channels
from serveprune.compression.pruning.observation import Observation, Shape
from serveprune.compression.pruning.residual_blocks import find_blocks
from serveprune.errors import InvalidArgument
from serveprune.evaluation.task import Task, scored_outputs
from serveprune.graph.node import operator
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_ENDS_OF_BLOCKS = frozenset(
    {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "BatchNormalization"}
    | {"Relu", "LeakyRelu", "Clip", "Gelu", "Silu", "HardSwish", "Sigmoid"}
)
_ROW_AXES = 2


class Meaning(Enum):
    """What a value says, which decides its losses."""

    CLASSES = auto()
    EMBEDDING = auto()
    ANSWER = auto()
    INTERMEDIATE = auto()


@dataclass(frozen=True, slots=True)
class WatchedValue:
    """A value of the student that should be like the teacher's of the same name.

    Attributes:
        by_token: Whether axis 1 is that of the tokens, so that what padding gives does not count.
        shape: Of the student's value; None for axes whose size depends on the input.
        kept: Axis -> positions of the teacher's value that pruning left.
    """

    name: str
    meaning: Meaning
    by_token: bool
    shape: Shape | None
    kept: tuple[tuple[int, KeptPositions], ...] = ()

    def projected(self, teacher: Array) -> Array:
        """Return what the student's value has of the teacher's, sample axis first.

        Raises:
            InvalidArgument: The two do not fit.
        """
        for axis, kept in self.kept:
            if axis >= teacher.ndim or teacher.shape[axis] % kept.length:
                raise self._misfit(teacher)
            # Where an axis repeats the channels, as one that was joined with others does, so does what is left.
            repeats = np.arange(teacher.shape[axis] // kept.length)[:, np.newaxis] * kept.length
            teacher = np.take(teacher, (repeats + kept.positions).ravel(), axis=axis)
        wanted = self.shape
        if wanted is not None and (
            len(wanted) != teacher.ndim
            or any(size not in (None, given) for size, given in zip(wanted[1:], teacher.shape[1:], strict=True))
        ):
            raise self._misfit(teacher)
        return teacher

    def _misfit(self, teacher: Array) -> InvalidArgument:
        own = "unknown" if self.shape is None else [size or "any" for size in self.shape]
        return InvalidArgument(
            f"distill: intermediate value {self.name!r}: expected one that has the same shape in the dense graph and "
            f"in the one to train (after pruning's channel map), got {list(teacher.shape)} and {own}; choose "
            "another value"
        )


def watched_outputs(task: Task, outputs: Sequence[TensorSpec], *, padded: bool) -> tuple[WatchedValue, ...]:
    """Return the outputs that count for a task; all floats where it has none of its own.

    Args:
        task: What the answers mean.
        outputs: Of the dense graph.
        padded: Whether texts of different lengths share batches.

    Raises:
        InvalidArgument: No output is a float.
    """
    meaning = {Task.CLASSIFICATION: Meaning.CLASSES, Task.EMBEDDING: Meaning.EMBEDDING}.get(task, Meaning.ANSWER)
    scored = scored_outputs(task, outputs)
    if not scored:
        meaning, scored = Meaning.ANSWER, scored_outputs(Task.GENERIC, outputs)
    floats = [spec for spec in scored if spec.datatype.dtype.kind == "f"]
    if not floats:
        raise InvalidArgument("distill: expected a model with an output of floats, from which gradients can come")
    return tuple(
        WatchedValue(spec.name, meaning, padded and len(spec.shape) >= _ROW_AXES and spec.shape[1] == DYNAMIC, None)
        for spec in floats
    )


def watched_intermediates(
    asked: str | Sequence[str], *, student: ir.Model, teacher: ir.Model, observation: Observation, padded: bool
) -> tuple[WatchedValue, ...]:
    """Return the intermediate values that are compared.

    Args:
        asked: ``auto`` for the end of each residual block, ``none``, or names.
        student: The graph to train.
        teacher: The dense graph.
        observation: Shapes of the student's values.
        padded: Whether texts of different lengths share batches.

    Raises:
        InvalidArgument: A name is no value of both graphs, or one without an axis of samples.
    """
    if asked == "none":
        return ()
    given = _computed(teacher)
    kept = read_kept_channels(student)
    rows = _sizes(student.graph.inputs[0].name or "", observation)
    if asked == "auto":
        names = dict.fromkeys(_end_of_block(student, block.name) for block in find_blocks(student.graph, observation))
        values = [_watched(name, observation, kept, rows=rows, padded=padded) for name in names if name in given]
        return tuple(value for value in values if value is not None)
    found = []
    for name in asked:
        known = name in given & _computed(student)
        value = _watched(name, observation, kept, rows=rows, padded=padded) if known else None
        if value is None:
            some = ", ".join(_end_of_block(student, block.name) for block in find_blocks(student.graph, observation))
            raise InvalidArgument(
                f"distill: intermediate: expected names of floats that both the dense graph and the one to train "
                f"compute for each sample, got {name!r}; values after residual blocks are: {some or 'none'}"
            )
        found.append(value)
    return tuple(found)


def _sizes(name: str, observation: Observation) -> tuple[int, int]:
    """Return the size of a value's first axis under both inputs."""
    return observation.first[name][0], observation.second[name][0]


def _watched(
    name: str, observation: Observation, kept: KeptChannels, *, rows: tuple[int, int], padded: bool
) -> WatchedValue | None:
    """Return a value to compare; None if its first axis is not that of the samples."""
    shape = observation.shape(name)
    if not shape or _sizes(name, observation) != rows:
        return None
    by_token = padded and len(shape) >= _ROW_AXES and shape[1] is None
    # Of tokens by tokens, as attention is, the second axis would have padding too.
    if padded and None in shape[2:]:
        return None
    return WatchedValue(name, Meaning.INTERMEDIATE, by_token, shape, tuple(kept.get(name, {}).items()))


def _end_of_block(model: ir.Model, total: str) -> str:
    """Return the value in which a residual block ends: its sum, or what alone reads the sum to normalise or bend it."""
    values = {output.name: output for node in model.graph for output in node.outputs}
    value = values[total]
    while True:
        readers = [node for node, _ in value.uses() if operator(node) != "Shape"]
        if len(readers) != 1 or readers[0].op_type not in _ENDS_OF_BLOCKS or value.is_graph_output():
            return value.name or total
        value = readers[0].outputs[0]


def _computed(model: ir.Model) -> set[str]:
    return {output.name or "" for node in model.graph for output in node.outputs}
