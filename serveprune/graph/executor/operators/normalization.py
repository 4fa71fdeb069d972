"""Normalization by running statistics, by those of groups of channels, and by norms."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, opset, optional
from serveprune.graph.node import attribute


def _batch(node: ir.Node) -> Kernel:
    epsilon, kept = float(attribute(node, "epsilon", 1e-5)), float(attribute(node, "momentum", 0.9))
    if attribute(node, "training_mode", 0):
        return _batch_of_training_graph(epsilon, kept)

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, scale, bias, mean, variance = (needed(inputs, slot) for slot in range(5))
        # ONNX's momentum is what stays of the old statistics, torch's what comes of the new ones.
        return functional.batch_norm(
            data, mean, variance, scale, bias, training=run.training, momentum=1 - kept, eps=epsilon
        )

    return kernel


def _batch_of_training_graph(epsilon: float, kept: float) -> Kernel:
    """Normalize by the batch whatever the module's mode, and return the new statistics, as the graph says."""

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor]:
        data, scale, bias, mean, variance = (needed(inputs, slot) for slot in range(5))
        axes = (0, *range(2, data.ndim))
        made = functional.batch_norm(data, None, None, scale, bias, training=True, eps=epsilon)
        running_mean = kept * mean + (1 - kept) * data.mean(axes)
        running_variance = kept * variance + (1 - kept) * data.var(axes, correction=0)
        return made, running_mean, running_variance

    return kernel


def _instance(node: ir.Node) -> Kernel:
    epsilon = float(attribute(node, "epsilon", 1e-5))
    return lambda inputs, run: functional.instance_norm(
        needed(inputs, 0), weight=needed(inputs, 1), bias=needed(inputs, 2), eps=epsilon
    )


def _group(node: ir.Node) -> Kernel:
    groups, epsilon = int(attribute(node, "num_groups")), float(attribute(node, "epsilon", 1e-5))
    # Before opset 21 there was one scale per group, since then there is one per channel.
    per_group = opset(node) < 21

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, scale, bias = needed(inputs, 0), needed(inputs, 1), needed(inputs, 2)
        if per_group:
            repeats = data.shape[1] // groups
            scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
        return functional.group_norm(data, groups, scale, bias, epsilon)

    return kernel


def _layer(node: ir.Node) -> Kernel:
    axis, epsilon = int(attribute(node, "axis", -1)), float(attribute(node, "epsilon", 1e-5))
    wanted = sum(1 for output in node.outputs if output.name)

    def kernel(inputs: Inputs, run: Run) -> Tensor | Sequence[Tensor]:
        data, scale, bias = needed(inputs, 0), optional(inputs, 1), optional(inputs, 2)
        made = _layer_norm(data, scale, bias, axis, epsilon)
        return made if wanted == 1 else (made, *_moments(data, axis, epsilon))

    return kernel


def _layer_norm(data: Tensor, scale: Tensor | None, bias: Tensor | None, axis: int, epsilon: float) -> Tensor:
    shape = data.shape[axis % data.ndim :]
    if all(value is None or value.shape == shape for value in (scale, bias)):
        return functional.layer_norm(data, shape, scale, bias, epsilon)
    made = functional.layer_norm(data, shape, eps=epsilon)
    made = made if scale is None else made * scale
    return made if bias is None else made + bias


def _moments(data: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse deviation, in float32 at least."""
    axes = tuple(range(axis % data.ndim, data.ndim))
    wide = data if data.dtype == torch.float64 else data.float()
    mean = wide.mean(axes, keepdim=True)
    return mean, torch.rsqrt(wide.var(axes, correction=0, keepdim=True) + epsilon)


def _root_mean_square(node: ir.Node) -> Kernel:
    axis, epsilon = int(attribute(node, "axis", -1)), float(attribute(node, "epsilon", 1e-5))
    wanted = sum(1 for output in node.outputs if output.name)

    def kernel(inputs: Inputs, run: Run) -> Tensor | Sequence[Tensor]:
        made, inverse = _rms_norm(needed(inputs, 0), needed(inputs, 1), axis, epsilon)
        return made if wanted == 1 else (made, inverse)

    return kernel


def _rms_norm(data: Tensor, scale: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    axes = tuple(range(axis % data.ndim, data.ndim))
    wide = data if data.dtype == torch.float64 else data.float()
    inverse = torch.rsqrt(torch.mean(wide * wide, axes, keepdim=True) + epsilon)
    return (wide * inverse).to(data.dtype) * scale, inverse


def _skip(node: ir.Node, *, simplified: bool) -> Kernel:
    """``com.microsoft``: adds a second value (and a bias) first, and may return the sum."""
    epsilon = float(attribute(node, "epsilon", 1e-12))

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor | None]:
        data, scale = needed(inputs, 0) + needed(inputs, 1), needed(inputs, 2)
        bias = optional(inputs, 3 if simplified else 4)
        data = data if bias is None else data + bias
        if simplified:
            made, inverse = _rms_norm(data, scale, -1, epsilon)
            return made, None, inverse, data
        return _layer_norm(data, scale, optional(inputs, 3), -1, epsilon), *_moments(data, -1, epsilon), data

    return kernel


def _embedding(node: ir.Node) -> Kernel:
    """``com.microsoft``: sums the embeddings of words, positions and segments, and normalizes them."""
    epsilon = float(attribute(node, "epsilon", 1e-12))

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor]:
        words, segments, mask = needed(inputs, 0), optional(inputs, 1), optional(inputs, 7)
        positions = optional(inputs, 8)
        if positions is None:
            positions = torch.arange(words.shape[1], device=words.device)
        total = functional.embedding(words.long(), needed(inputs, 2))
        total = total + functional.embedding(positions.long(), needed(inputs, 3))
        if segments is not None:
            total = total + functional.embedding(segments.long(), needed(inputs, 4))
        lengths = words.new_zeros(words.shape[0]) if mask is None else mask.sum(1)
        made = _layer_norm(total, needed(inputs, 5), needed(inputs, 6), -1, epsilon)
        return made, lengths.to(torch.int32), total

    return kernel


def _local_response(node: ir.Node) -> Kernel:
    size, alpha = int(attribute(node, "size")), float(attribute(node, "alpha", 1e-4))
    beta, bias = float(attribute(node, "beta", 0.75)), float(attribute(node, "bias", 1.0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        # torch's own operator puts the odd neighbour of an even size on the other side.
        around = (*(0, 0) * (data.ndim - 2), (size - 1) // 2, size // 2)
        sums = functional.pad(data * data, around).unfold(1, size, 1).sum(-1)
        return data / (bias + alpha / size * sums) ** beta

    return kernel


def _norm(node: ir.Node) -> Kernel:
    axis, order = int(attribute(node, "axis", -1)), int(attribute(node, "p", 2))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        norm = torch.linalg.vector_norm(data, order, axis, keepdim=True)
        return data / torch.where(norm == 0, torch.ones_like(norm), norm)

    return kernel


def _mean_variance(node: ir.Node) -> Kernel:
    axes = tuple(attribute(node, "axes", (0, 2, 3)))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        centred = data - data.mean(axes, keepdim=True)
        return centred / (data.std(axes, correction=0, keepdim=True) + 1e-9)

    return kernel


def _by_axis(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def build(node: ir.Node) -> Kernel:
        if opset(node) >= 13:
            axis = int(attribute(node, "axis", -1))
            return lambda inputs, run: function(needed(inputs, 0), axis)
        # Before opset 13 the axes from this one on were taken as one.
        first = int(attribute(node, "axis", 1))

        def kernel(inputs: Inputs, run: Run) -> Tensor:
            data = needed(inputs, 0)
            return function(data.flatten(first % data.ndim), -1).reshape(data.shape)

        return kernel

    return Operator(build)


def _hardmax(data: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(data).scatter(axis, data.argmax(axis, keepdim=True), 1.0)


_LAYER = Operator(_layer, weights=(1, 2))
_ROOT_MEAN_SQUARE = Operator(_root_mean_square, weights=(1,))

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "BatchNormalization": Operator(_batch, weights=(1, 2), statistics=(3, 4)),
        "InstanceNormalization": Operator(_instance, weights=(1, 2)),
        "GroupNormalization": Operator(_group, weights=(1, 2)),
        "LayerNormalization": _LAYER,
        "com.microsoft::LayerNormalization": _LAYER,
        "RMSNormalization": _ROOT_MEAN_SQUARE,
        "SimplifiedLayerNormalization": _ROOT_MEAN_SQUARE,
        "com.microsoft::RMSNormalization": _ROOT_MEAN_SQUARE,
        "com.microsoft::SimplifiedLayerNormalization": _ROOT_MEAN_SQUARE,
        "com.microsoft::SkipLayerNormalization": Operator(
            lambda node: _skip(node, simplified=False), weights=(2, 3, 4)
        ),
        "com.microsoft::SkipSimplifiedLayerNormalization": Operator(
            lambda node: _skip(node, simplified=True), weights=(2, 3)
        ),
        "com.microsoft::EmbedLayerNormalization": Operator(_embedding, weights=(2, 3, 4, 5, 6)),
        "LRN": Operator(_local_response),
        "LpNormalization": Operator(_norm),
        "MeanVarianceNormalization": Operator(_mean_variance),
        "Softmax": _by_axis(lambda data, axis: torch.softmax(data, axis)),
        "LogSoftmax": _by_axis(lambda data, axis: torch.log_softmax(data, axis)),
        "Hardmax": _by_axis(_hardmax),
    }
)
