"""Weights as nothing has trained them: drawn anew, or taken from a file."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from serveprune.compression.lottery.layers import FILTERED, MULTIPLIED, RECURRENT, readers
from serveprune.errors import InvalidArgument
from serveprune.graph.executor.constants import Role, role_of
from serveprune.graph.node import attribute, operator

_NORMALIZATIONS = (
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "com.microsoft::SkipLayerNormalization",
)
_SCALE_SLOTS = {"com.microsoft::SkipLayerNormalization": 2}
_VARIANCE_SLOT = 4  # of BatchNormalization
_SLOPE = 0.25  # of PReLU
_MOST_NAMED = 5

_Draw = Callable[[torch.Generator, torch.Size], Tensor]


def redraw(model: ir.Model, *, seed: int) -> tuple[str, ...]:
    """Draw all weights of a graph anew, in place, each layer as torch's own layers begin.

    Linear and convolutional layers: uniform within 1 / sqrt(inputs of an output), biases too. Recurrent ones: uniform
    within 1 / sqrt(hidden). Embeddings: normal. Normalization: scale 1, shift 0, mean 0, variance 1.

    Returns:
        Names of learned constants that no such layer reads; they are as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for name, value in sorted(model.graph.initializers.items()):
        role = role_of(value)
        if role not in (Role.WEIGHT, Role.STATISTIC):
            continue
        draw = next((found for node, slot in readers(value) if (found := _rule(node, slot)) is not None), None)
        if draw is None:
            kept.append(name)
            continue
        assert value.const_value is not None
        _set(value, draw(generator, torch.Size(value.const_value.shape.numpy())))
    return tuple(kept)


def take_weights(model: ir.Model, path: Path) -> None:
    """Set all weights and running statistics of a graph to those of a safetensors file, in place.

    Raises:
        InvalidArgument: It is no such file, or lacks a weight, or has it in another shape.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InvalidArgument(f"rewind.checkpoint: expected a safetensors file, got {path.name}: {error}") from error
    problems = []
    for name, value in model.graph.initializers.items():
        if role_of(value) not in (Role.WEIGHT, Role.STATISTIC):
            continue
        assert value.const_value is not None
        # A constant that several layers read has become one for each.
        found = tensors.get(name, tensors.get(name.rpartition("_copy")[0]))
        shape = tuple(value.const_value.shape.numpy())
        if found is None:
            problems.append(f"{name} is missing")
        elif tuple(found.shape) != shape:
            problems.append(f"{name}: expected the shape {shape}, got {tuple(found.shape)}")
        else:
            _set(value, found.float())
    if problems:
        more = f" and {len(problems) - _MOST_NAMED} more problems" if len(problems) > _MOST_NAMED else ""
        raise InvalidArgument(
            f"rewind.checkpoint: expected the weights of this graph under its names in {path.name}: "
            f"{'; '.join(problems[:_MOST_NAMED])}{more}"
        )


def _set(value: ir.Value, tensor: Tensor) -> None:
    assert value.const_value is not None
    dtype = value.const_value.dtype
    array = np.ascontiguousarray(tensor.numpy()).astype(dtype.numpy())
    value.const_value = ir.tensor(array, dtype=dtype, name=value.name)


def _rule(node: ir.Node, slot: int) -> _Draw | None:
    """Return how an input of a node is drawn, None if nothing tells."""
    name = operator(node)
    if name in _NORMALIZATIONS:
        variance = _VARIANCE_SLOT if name == "BatchNormalization" else None
        return _constant(1.0 if slot in (_SCALE_SLOTS.get(name, 1), variance) else 0.0)
    if name == "PRelu":
        return _constant(_SLOPE)
    if name == "Gather" and slot == 0:
        return lambda generator, shape: torch.randn(shape, generator=generator)
    if name in RECURRENT:
        return _uniform(int(attribute(node, "hidden_size")))
    if name in (*FILTERED, *MULTIPLIED):
        inputs = _inputs_of_an_output(node, slot if slot < 2 else 1)
        return None if inputs is None else _uniform(inputs)
    if name == "Add":
        return _bias(node, slot)
    return None


def _bias(node: ir.Node, slot: int) -> _Draw | None:
    """Return how a vector is drawn that is added to a layer's outputs."""
    other = node.inputs[1 - slot]
    layer = other.producer() if other is not None else None
    if layer is None or operator(layer) not in (*FILTERED, *MULTIPLIED):
        return None
    weights = [place for place in (0, 1) if _constant_shape(layer.inputs[place]) is not None]
    inputs = _inputs_of_an_output(layer, weights[0]) if weights else None
    return None if inputs is None else _uniform(inputs)


def _inputs_of_an_output(node: ir.Node, slot: int) -> int | None:
    shape = _constant_shape(node.inputs[slot])
    if shape is None:
        return None
    if operator(node) in FILTERED:
        return math.prod(shape[1:])
    if len(shape) == 1:
        return shape[0]
    turned = bool(attribute(node, "transB" if slot == 1 else "transA", 0))
    # Of a left operand the last axis is summed over, of a right one the last but one.
    return shape[-1] if turned == (slot == 1) else shape[-2]


def _constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of a constant as a node reads it, None if it is computed or reshaped on its way."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    node = value.producer()
    if node is None or operator(node) not in ("Identity", "Cast", "Transpose"):
        return None
    shape = _constant_shape(node.inputs[0])
    if shape is None or operator(node) != "Transpose":
        return shape
    order = attribute(node, "perm", tuple(reversed(range(len(shape)))))
    return tuple(shape[axis] for axis in order)


def _constant(number: float) -> _Draw:
    return lambda generator, shape: torch.full(shape, number)


def _uniform(inputs: int) -> _Draw:
    bound = 1 / math.sqrt(inputs)
    return lambda generator, shape: torch.empty(shape).uniform_(-bound, bound, generator=generator)
