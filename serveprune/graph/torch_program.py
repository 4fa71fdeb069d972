"""What torch factories and `.pt2` programs have in common: made-up inputs and reference outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from serveprune.errors import InvalidArgument
from serveprune.graph.export import first_reason, quiet_frameworks
from serveprune.graph.parity import Reference
from serveprune.graph.probe import AXIS_SIZES, BATCHES
from serveprune.oip.tensor import Array


@dataclass(frozen=True, slots=True)
class TorchProbe:
    """Reference outputs, and the axis size the model took.

    Attributes:
        references: One for each of `BATCHES`, with different sizes of every other dynamic axis.
        outputs: Number of outputs.
        size: Size of dynamic axes other than batch that the model takes.
    """

    references: tuple[Reference, ...]
    outputs: int
    size: int


def probe_program(
    program: Callable[..., Any], feeds: Callable[[int, int], dict[str, Array]], *, label: str
) -> TorchProbe:
    """Run a program on made-up inputs, at the first pair of axis sizes that it takes.

    Args:
        program: Takes tensors by position.
        feeds: Makes up inputs from a batch size and a size for other dynamic axes, in order of position.
        label: How messages name the source.

    Raises:
        InvalidArgument: It takes none of the sizes, or gives something that is no tensor.
    """
    reason = ""
    for sizes in AXIS_SIZES:
        made = [feeds(batch, size) for batch, size in zip(BATCHES, sizes, strict=True)]
        try:
            with quiet_frameworks(), torch.no_grad():
                results = [program(*(torch.from_numpy(array) for array in feed.values())) for feed in made]
        except Exception as error:  # a model's own code may raise anything
            reason = reason or first_reason(error)
            continue
        outputs = [_arrays(result, label=label) for result in results]
        references = tuple(Reference(feed, output) for feed, output in zip(made, outputs, strict=True))
        return TorchProbe(references, len(outputs[0]), sizes[1])
    raise InvalidArgument(f"{label}: the model does not take inputs of the declared shapes: {reason}")


def output_names(declared: Sequence[str], *, count: int, label: str) -> tuple[str, ...]:
    """Return the declared names, or `output`, `output_1`, ...

    Raises:
        InvalidArgument: There are not as many names as outputs, or a name twice.
    """
    if not declared:
        return tuple("output" if position == 0 else f"output_{position}" for position in range(count))
    if len(declared) != count or len(set(declared)) != count:
        raise InvalidArgument(
            f"{label}: the model gives {count} tensors; expected as many different output names, got {list(declared)}"
        )
    return tuple(declared)


def _arrays(result: Any, *, label: str) -> list[Array]:
    leaves = pytree.tree_leaves(result)
    wrong = next((leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)), None)
    if not leaves or wrong is not None:
        raise InvalidArgument(
            f"{label}: expected the model to give tensors, got {type(wrong).__name__} among its outputs"
        )
    return [leaf.numpy() for leaf in leaves]
