"""Operators whose result at one position depends on others along an axis: that axis stays whole."""

import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.graph.node import attribute, constant, label, listed, required

_SOFTMAX_ALONG_ONE_AXIS = 13
_GROUP_PARAMETERS_PER_CHANNEL = 21


def per_channel(node: ir.Node, walk: Walk) -> list[Axes]:
    """Channels keep apart; each has its own scale, shift and statistics."""
    axes = list(walk.of(node.inputs[0]))
    walk.keep(axes[2:], f"normalised as a whole by {label(node)}")
    for parameter in node.inputs[1:]:
        if parameter is not None:
            axes[1] = walk.couple(axes[1], walk.of(parameter)[0], f"parameters of {label(node)}")
    space = walk.without_units(node.outputs[0])[2:]
    return [(*axes[:2], *space), *((None,) for _ in node.outputs[1:])]


def group_normalization(node: ir.Node, walk: Walk) -> list[Axes]:
    """Statistics run over groups of channels: whole groups may go, each with its own statistics."""
    axes, shape = walk.of(node.inputs[0]), walk.shape(node.inputs[0])
    groups = int(attribute(node, "num_groups", 1))
    reason = f"normalised as a whole by {label(node)}"
    walk.keep(axes[2:], reason)
    scale, shift = (walk.of(value) for value in node.inputs[1:3])
    ids = axes[1]
    if ids is None or scale[0] is None or shift[0] is None or groups == 1:
        return walk.pinned(node, reason)
    walk.units.join_rows(ids.reshape(groups, -1))
    for parameter in (scale[0], shift[0]):
        per_group = len(parameter) == groups and walk.opset < _GROUP_PARAMETERS_PER_CHANNEL
        walk.units.join(ids.reshape(groups, -1)[:, 0] if per_group else ids, parameter)
    return [(axes[0], ids, *(None,) * (len(shape) - 2))]


def layer_normalization(node: ir.Node, walk: Walk) -> list[Axes]:
    """Statistics run over the last axes, so those stay whole."""
    axes = walk.of(node.inputs[0])
    start = int(attribute(node, "axis", -1)) % len(axes)
    reason = f"normalised as a whole by {label(node)}"
    for parameter in node.inputs[1:]:
        walk.keep(walk.of(parameter), reason)
    walk.keep(axes[start:], reason)
    # The units go on, though pinned, so that all they meet is kept for this reason.
    return [axes, *(walk.without_units(output) for output in node.outputs[1:])]


def skip_layer_normalization(node: ir.Node, walk: Walk) -> list[Axes]:
    """A sum, then a normalisation of the last axis; both are outputs."""
    outputs = walk.pinned(node, f"normalised as a whole by {label(node)}")
    if node.op_type == "EmbedLayerNormalization":
        return outputs
    # The normalised sum, and after mean and deviation the sum itself.
    return [walk.of(node.inputs[0]) if index in (0, 3) else made for index, made in enumerate(outputs)]


def along_axis(node: ir.Node, walk: Walk) -> list[Axes]:
    """Positions along one axis depend on each other, so that axis stays whole."""
    axes = list(walk.of(node.inputs[0]))
    reason = f"taken as a whole by {label(node)}"
    old = walk.opset < _SOFTMAX_ALONG_ONE_AXIS and node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
    axis = int(attribute(node, "axis", 1 if old else -1)) % len(axes)
    # Before opset 13 the operator took all axes from this one on as one.
    end = len(axes) if old else axis + 1
    walk.keep(axes[axis:end], reason)
    return [tuple(axes)]


def cumulative_sum(node: ir.Node, walk: Walk) -> list[Axes]:
    """Like `along_axis`, with the axis as an input."""
    axes, index = list(walk.of(node.inputs[0])), constant(required(node, 1))
    if index is None:
        return walk.pinned(node, f"computed axis of {label(node)}")
    axis = int(index.reshape(-1)[0])
    walk.pin(axes[axis], f"taken as a whole by {label(node)}")
    axes[axis] = None
    return [tuple(axes)]


def across_channels(node: ir.Node, walk: Walk) -> list[Axes]:
    """Neighbouring channels meet (LRN)."""
    axes = walk.of(node.inputs[0])
    return [(axes[0], *walk.keep(axes[1:], f"taken as a whole by {label(node)}"))]


def reduction(node: ir.Node, walk: Walk) -> list[Axes]:
    """Reduced axes stay whole; the others pass."""
    axes = walk.of(node.inputs[0])
    if node.op_type.startswith("Arg"):
        reduced = {int(attribute(node, "axis", 0)) % len(axes)}
    else:
        numbers, computed = listed(node, slot=1, name="axes")
        if computed:
            return walk.pinned(node, f"computed axes of {label(node)}")
        if not numbers:
            numbers = () if attribute(node, "noop_with_empty_axes", 0) else range(len(axes))
        reduced = {int(axis) % len(axes) for axis in numbers}
    walk.keep((axes[axis] for axis in reduced), f"reduced by {label(node)}")
    if attribute(node, "keepdims", 1):
        return [tuple(None if axis in reduced else ids for axis, ids in enumerate(axes))]
    return [tuple(ids for axis, ids in enumerate(axes) if axis not in reduced)]


def triangle(node: ir.Node, walk: Walk) -> list[Axes]:
    """Which positions of the last two axes stay depends on both."""
    axes = walk.of(node.inputs[0])
    return [(*axes[:-2], *walk.keep(axes[-2:], f"cut to a triangle by {label(node)}"))]


_LAYER = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_SKIP = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization")
_REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare"),
    *("ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin"),
)
RULES: dict[str, Rule] = {
    "BatchNormalization": per_channel,
    "InstanceNormalization": per_channel,
    "GroupNormalization": group_normalization,
    **dict.fromkeys(_LAYER, layer_normalization),
    **{f"com.microsoft::{name}": layer_normalization for name in _LAYER},
    **{f"com.microsoft::{name}": skip_layer_normalization for name in _SKIP},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), along_axis),
    "CumSum": cumulative_sum,
    "LRN": across_channels,
    "Trilu": triangle,
    **dict.fromkeys(_REDUCTIONS, reduction),
}
