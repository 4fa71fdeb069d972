"""Convolutions."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
from torch import Tensor
from torch.nn import functional

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.executor.operators.activation import fused_activation
from serveprune.graph.executor.operators.window import Window, flat, share
from serveprune.graph.node import attribute, integers

_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _convolution(node: ir.Node) -> Kernel:
    groups = int(attribute(node, "group", 1))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, weight = needed(inputs, 0), needed(inputs, 1)
        window = Window.of(node, weight.shape[2:])
        pads = window.pads(data.shape[2:])
        symmetric = all(before == after for before, after in pads)
        if not symmetric:
            data = functional.pad(data, flat(pads))
        return _CONVOLUTIONS[data.ndim - 2](
            data,
            weight,
            optional(inputs, 2),
            stride=window.strides,
            padding=[before for before, _ in pads] if symmetric else 0,
            dilation=window.dilations,
            groups=groups,
        )

    return kernel


def _fused_convolution(node: ir.Node) -> Kernel:
    convolution = _convolution(node)
    parameters = [float(each) for each in attribute(node, "activation_params", ())]
    activation = fused_activation(node, str(attribute(node, "activation", "")), parameters)

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        made, added = convolution(inputs, run), optional(inputs, 3)
        assert isinstance(made, Tensor)
        return activation(made if added is None else made + added)

    return kernel


def _transposed_convolution(node: ir.Node) -> Kernel:
    groups = int(attribute(node, "group", 1))
    wanted = integers(node, "output_shape")

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, weight, bias = needed(inputs, 0), needed(inputs, 1), optional(inputs, 2)
        window = Window.of(node, weight.shape[2:])
        rank = len(window.kernel)
        extra = integers(node, "output_padding") or (0,) * rank
        pads = _transposed_pads(window, data.shape[2:], extra, wanted[-rank:] if wanted else None)
        made = _TRANSPOSED[rank](
            data, weight, stride=window.strides, dilation=window.dilations, groups=groups, bias=None
        )
        # What is made without pads holds all there is: pads cut it, and beyond it only the bias is left.
        cuts = [(-before, more - after) for (before, after), more in zip(pads, extra, strict=True)]
        if any(cut != (0, 0) for cut in cuts):
            made = functional.pad(made, flat(cuts))
        return made if bias is None else made + bias.reshape(-1, *(1,) * rank)

    return kernel


def _transposed_pads(
    window: Window, space: Sequence[int], extra: Sequence[int], wanted: Sequence[int] | None
) -> list[tuple[int, int]]:
    same = window.mode in ("SAME_UPPER", "SAME_LOWER")
    if wanted is None and not same:
        return window.pads(space)
    sizes = wanted or [size * stride for size, stride in zip(space, window.strides, strict=True)]
    totals = [
        (size - 1) * stride + more + reach - made
        for size, stride, more, reach, made in zip(space, window.strides, extra, window.reach, sizes, strict=True)
    ]
    # Only SAME_UPPER puts the odd one at the end; all other modes put it at the beginning.
    return [share(total, lower=window.mode != "SAME_UPPER") for total in totals]


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Conv": Operator(_convolution, weights=(1, 2)),
        "ConvTranspose": Operator(_transposed_convolution, weights=(1, 2)),
        "com.microsoft::FusedConv": Operator(_fused_convolution, weights=(1, 2)),
    }
)
