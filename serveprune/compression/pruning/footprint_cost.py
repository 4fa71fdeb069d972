"""Multiplications, parameters and bytes by width: counted, not measured."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from serveprune.compression.pruning.cost import Widths
from serveprune.compression.pruning.group_axes import AxisSize, GroupAxes
from serveprune.graph.node import attribute

Footprint = Literal["flops", "parameters", "bytes"]


@dataclass(frozen=True, slots=True)
class SizeProduct:
    """A number times the sizes of some axes: the multiplications of one product, the elements of one constant."""

    factor: float
    axes: tuple[AxisSize, ...]

    @classmethod
    def of(cls, axes: Iterable[AxisSize], *, factor: float = 1.0) -> "SizeProduct":
        """Multiply sizes; those that stay are folded into the factor."""
        listed = tuple(axes)
        fixed = math.prod(axis.fixed for axis in listed if not axis.per_unit)
        return cls(factor * fixed, tuple(axis for axis in listed if axis.per_unit))

    @property
    def groups(self) -> frozenset[int]:
        """Groups that it depends on."""
        return frozenset(group for axis in self.axes for group in axis.per_unit)

    def value(self, widths: Widths) -> float:
        """Return the number for given widths."""
        return float(self.along(None, widths=widths, candidates=np.ones(1, np.int64))[0])

    def along(self, group: int | None, *, widths: Widths, candidates: Widths) -> NDArray[np.float64]:
        """Return the number for each width one group may take."""
        result = np.full(len(candidates), self.factor)
        for axis in self.axes:
            size = np.full(len(candidates), float(axis.fixed))
            for member, per_unit in axis.per_unit.items():
                size += per_unit * (candidates if member == group else widths[member])
            result *= size
        return result


class FootprintCost:
    """A `CostModel` that adds up products of sizes."""

    def __init__(self, products: Iterable[SizeProduct], *, dense: Widths) -> None:
        self._products = tuple(products)
        self._touching: dict[int, list[SizeProduct]] = {}
        for product in self._products:
            for group in product.groups:
                self._touching.setdefault(group, []).append(product)
        self._dense = dense

    @property
    def dense(self) -> Widths:
        """See `CostModel.dense`."""
        return self._dense

    def total(self, widths: Widths) -> float:
        """See `CostModel.total`."""
        return sum(product.value(widths) for product in self._products)

    def along(self, group: int, *, widths: Widths, candidates: Widths) -> NDArray[np.float64]:
        """See `CostModel.along`."""
        result = np.full(len(candidates), self.total(widths))
        for product in self._touching.get(group, ()):
            result += product.along(group, widths=widths, candidates=candidates) - product.value(widths)
        return result


def footprint_cost(
    model: ir.Model, axes: GroupAxes, *, shapes: Mapping[str, tuple[int, ...]], kind: Footprint
) -> FootprintCost:
    """Count what a model costs by width.

    ``flops`` are the multiplications of Conv, ConvTranspose, MatMul and Gemm, that is, nearly all of them;
    ``parameters`` are the elements of floating-point constants; ``bytes`` those of all constants.

    Args:
        model: The graph the groups were found in.
        axes: Which groups its axes belong to.
        shapes: Shape of every value for the batch and other dynamic sizes that are meant.
        kind: What is counted.
    """
    products = (
        multiplications(model.graph, axes, shapes=shapes) if kind == "flops" else _constants(model.graph, axes, kind)
    )
    return FootprintCost(products, dense=axes.widths)


def multiplications(
    nodes: Iterable[ir.Node], axes: GroupAxes, *, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[SizeProduct]:
    """Yield the multiplications of every contraction among the nodes."""
    for node in nodes:
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and node.domain == "":
            yield _contraction(node, axes, shapes)


def elements(
    values: Iterable[ir.Value], axes: GroupAxes, *, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[SizeProduct]:
    """Yield the number of elements of every value."""
    for value in values:
        name = value.name or ""
        if name in shapes:
            yield SizeProduct.of(axes.sizes(name, shape=shapes[name]))


def _contraction(node: ir.Node, axes: GroupAxes, shapes: Mapping[str, tuple[int, ...]]) -> SizeProduct:
    first, second = node.inputs[0], node.inputs[1]
    assert first is not None
    assert second is not None

    def sizes(value: ir.Value) -> tuple[AxisSize, ...]:
        return axes.sizes(value.name or "", shape=_shape(value, shapes))

    if node.op_type in ("Conv", "ConvTranspose"):
        # A kernel is applied once per position of what is made (Conv) or read (ConvTranspose).
        places = _shape(node.outputs[0] if node.op_type == "Conv" else first, shapes)
        return SizeProduct.of(sizes(second), factor=float(places[0] * math.prod(places[2:])))
    summed = sizes(first)[0 if attribute(node, "transA", 0) else -1]
    return SizeProduct.of((*sizes(node.outputs[0]), summed))


def _constants(graph: ir.Graph, axes: GroupAxes, kind: Footprint) -> Iterator[SizeProduct]:
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or (kind == "parameters" and not tensor.dtype.is_floating_point()):
            continue
        shape = tuple(tensor.shape.numpy())
        factor = tensor.dtype.itemsize if kind == "bytes" else 1.0
        yield SizeProduct.of(axes.sizes(name, shape=shape), factor=factor)


def _shape(value: ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    return shapes[value.name or ""]
