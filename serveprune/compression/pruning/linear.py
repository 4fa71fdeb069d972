"""A Conv, Gemm or MatMul with constant weights, seen as one matrix product."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from serveprune.oip.tensor import Array

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """The sum a linear map's output goes into, unchanged but for a constant.

    Attributes:
        total: Name of the sum.
        carried: Name of its other term, what the stream held before.
        offset: Constant that is added on the way, the bias of a MatMul.
    """

    total: str
    carried: str
    offset: Array | None

    @classmethod
    def after(cls, output: ir.Value) -> "ResidualStream | None":
        """Find the sum that a value goes into, and into nothing else."""
        offset: Array | None = None
        value = output
        for _ in range(2):
            uses = list(value.uses())
            if len(uses) != 1 or uses[0][0].op_type != "Add":
                return None
            node, slot = uses[0]
            other = node.inputs[1 - slot]
            assert other is not None
            if other.const_value is None:
                return cls(node.outputs[0].name or "", other.name or "", offset)
            if offset is not None or len(other.const_value.shape) != 1:
                return None
            offset, value = np.asarray(other.const_value.numpy()), node.outputs[0]
        return None


@dataclass(frozen=True, slots=True)
class LinearMap:
    """What a node computes: ``rows @ matrix + bias``.

    Each input channel owns ``taps`` consecutive rows of the matrix: 1, or the kernel's positions of a Conv.

    Attributes:
        node: Name of the node's output, which names the node in every copy of the graph.
        data: Name of the activation it reads.
        weight: Name of the constant.
        channels_axis: Axis of the constant that input channels run along.
    """

    operator: str
    node: str
    data: str
    weight: str
    channels_axis: int
    taps: int
    stream: "ResidualStream | None" = None

    @classmethod
    def of(cls, node: ir.Node, *, data: ir.Value, weight: ir.Value, channels_axis: int) -> "LinearMap | None":
        """Describe a node; ``None`` for those that are no plain product (grouped and transposed Conv).

        Nor is it one whose weight others read as well: what fits here would not fit there.
        """
        array = weight.const_value
        assert array is not None
        if len(weight.uses()) > 1 or not _offset_by_constant(node):
            return None
        if node.op_type == "Conv":
            groups = node.attributes.get("group")
            if groups is not None and groups.as_int() != 1:
                return None
            taps = int(np.prod(array.shape.numpy()[2:]))
        elif node.op_type in ("Gemm", "MatMul") and len(array.shape) == 2 and node.inputs[1] is weight:
            if node.op_type == "Gemm" and not _is_plain(node):
                return None
            taps = 1
        else:
            return None
        stream = ResidualStream.after(node.outputs[0])
        names = (node.outputs[0].name or "", data.name or "", weight.name or "")
        return cls(node.op_type, *names, channels_axis, taps, stream)

    def matrix(self, weight: Array) -> Matrix:
        """Return a weight array as ``(channels * taps, outputs)`` float64."""
        moved = np.moveaxis(weight, self.channels_axis, 0) if self.taps == 1 and weight.ndim == 2 else None
        if moved is not None:
            return np.asarray(moved, np.float64)
        return np.asarray(weight, np.float64).reshape(weight.shape[0], -1).T

    def weight_like(self, matrix: Matrix, weight: Array) -> Array:
        """Return a matrix in the layout and dtype of the weight array it replaces."""
        if weight.ndim == 2 and self.operator != "Conv":
            return np.ascontiguousarray(np.moveaxis(matrix, 0, self.channels_axis)).astype(weight.dtype)
        return np.ascontiguousarray(matrix.T.reshape(weight.shape)).astype(weight.dtype)

    def rows(self, data: Array, node: ir.Node, *, positions: NDArray[np.int64] | None = None) -> Array:
        """Return the rows that meet the matrix, ``(rows, channels * taps)`` float32.

        Args:
            data: The activation, ``(..., channels)``, or ``(N, channels, *space)`` for a Conv.
            node: The node, whose strides and padding say which rows a Conv reads.
            positions: Take only these output positions of a Conv.
        """
        if self.operator != "Conv":
            return data.reshape(-1, data.shape[-1])
        fields = _receptive_fields(data, node)
        space = fields.shape[1 : data.ndim - 1]
        places = np.unravel_index(np.arange(np.prod(space)) if positions is None else positions, space)
        chosen: tuple[slice | NDArray[np.int64], ...] = (slice(None), *places)
        # Only what is asked for is copied: all fields of an image together take many times its memory.
        return np.ascontiguousarray(fields[chosen]).reshape(len(data) * len(places[0]), -1)

    def outputs(self, output: Array, *, positions: NDArray[np.int64] | None = None) -> Array:
        """Return what the node gave for the same rows, ``(rows, outputs)``."""
        if self.operator != "Conv":
            return output.reshape(-1, output.shape[-1])
        flat = output.reshape(*output.shape[:2], -1)
        if positions is not None:
            flat = flat[:, :, positions]
        return flat.transpose(0, 2, 1).reshape(-1, flat.shape[1])

    def matrix_rows(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the matrix that belong to these input channels, channel after channel."""
        return (channels[:, None] * self.taps + np.arange(self.taps)).ravel()


def _offset_by_constant(node: ir.Node) -> bool:
    """Tell whether the third input, if there is one, is the same for all rows."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        return bias is None
    return bias.const_value.size == max(bias.const_value.shape.numpy(), default=1)


def _is_plain(gemm: ir.Node) -> bool:
    """Tell whether a Gemm neither transposes its rows nor scales what it adds up."""
    return all(
        gemm.attributes[name].value == plain
        for name, plain in (("transA", 0), ("alpha", 1.0), ("beta", 1.0))
        if name in gemm.attributes
    )


def _receptive_fields(data: Array, node: ir.Node) -> Array:
    """Return a view of what a Conv reads for each output position, ``(N, *positions, channels, *kernel)``."""
    space = data.ndim - 2
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    kernel = tuple(weight.const_value.shape.numpy()[2:])
    strides = _integers(node, "strides", (1,) * space)
    dilations = _integers(node, "dilations", (1,) * space)
    pads = _padding(node, data.shape[2:], kernel, strides, dilations)
    if any(pads):
        data = np.pad(data, [(0, 0), (0, 0), *zip(pads[:space], pads[space:], strict=True)])
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, data.ndim))
    fields = np.lib.stride_tricks.sliding_window_view(data, reach, axis=axes)
    steps = [slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations))]
    return np.moveaxis(fields[tuple(steps)], 1, space + 1)


def _integers(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    found = node.attributes.get(name)
    return tuple(found.as_ints()) if found is not None else default


def _padding(
    node: ir.Node, size: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    automatic = node.attributes.get("auto_pad")
    mode = automatic.as_string() if automatic is not None else "NOTSET"
    if mode == "NOTSET":
        return _integers(node, "pads", (0,) * (2 * len(size)))
    if mode == "VALID":
        return (0,) * (2 * len(size))
    totals = [
        max((-(-extent // step) - 1) * step + (reach - 1) * dilation + 1 - extent, 0)
        for extent, reach, step, dilation in zip(size, kernel, strides, dilations, strict=True)
    ]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return tuple([*small, *large] if mode == "SAME_UPPER" else [*large, *small])
