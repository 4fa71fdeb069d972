"""Matrix products: an axis is summed over, the others go on."""

from dataclasses import dataclass

import onnx_ir as ir

from serveprune.compression.pruning.axes import Axes
from serveprune.compression.pruning.coupling.walk import Rule, Walk
from serveprune.compression.pruning.observation import Shape
from serveprune.compression.pruning.units import Ids
from serveprune.graph.node import attribute, given, label, required


@dataclass(frozen=True, slots=True)
class _Operand:
    """One side of a product: the axis summed over, the one it hands on (a vector has none), and all before."""

    axes: Axes
    shape: Shape
    summed: int
    passed: int | None

    @classmethod
    def of(cls, value: ir.Value, walk: Walk, *, left: bool, transposed: bool) -> "_Operand":
        axes = walk.of(value)
        rank = len(axes)
        if rank == 1:
            return cls(axes, walk.shape(value), 0, None)
        last = left != transposed
        return cls(axes, walk.shape(value), rank - 1 if last else rank - 2, rank - 2 if last else rank - 1)

    @property
    def made(self) -> tuple[Ids | None, ...]:
        return () if self.passed is None else (self.axes[self.passed],)


def matrix_product(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(..., M, K)`` with ``(..., K, N)``; leading axes broadcast. Either may be the constant, or none."""
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        return walk.pinned(node, f"transposed batch of {label(node)}")
    one = _Operand.of(required(node, 0), walk, left=True, transposed=bool(attribute(node, "transA", 0)))
    other = _Operand.of(required(node, 1), walk, left=False, transposed=bool(attribute(node, "transB", 0)))
    _sum_over(node, one, other, walk)
    leading = []
    ranks = [max(len(operand.axes) - 2, 0) for operand in (one, other)]
    for position in range(max(ranks)):
        met: list[tuple[Ids | None, int | None]] = []
        for operand, rank in zip((one, other), ranks, strict=True):
            index = position - max(ranks) + rank
            if index >= 0:
                met.append((operand.axes[index], operand.shape[index]))
        ids = walk.couple_sizes(met, node)
        if ids is not None:
            walk.evidence.append((ids, "heads"))
        leading.append(ids)
    return [(*leading, *one.made, *other.made)]


def gemm(node: ir.Node, walk: Walk) -> list[Axes]:
    """``(M, K)`` with ``(K, N)``, either transposed, plus ``C``."""
    one = _Operand.of(required(node, 0), walk, left=True, transposed=bool(attribute(node, "transA", 0)))
    other = _Operand.of(required(node, 1), walk, left=False, transposed=bool(attribute(node, "transB", 0)))
    _sum_over(node, one, other, walk)
    made = [*one.made, *other.made]
    bias = given(node, 2)
    if bias is not None:
        axes, sizes = walk.of(bias), walk.shape(bias)
        for offset in range(1, len(axes) + 1):
            if sizes[-offset] == 1:
                walk.pin(axes[-offset], f"is broadcast by {label(node)}")
            else:
                made[-offset] = walk.couple(made[-offset], axes[-offset], f"bias of {label(node)}")
    return [tuple(made)]


def _sum_over(node: ir.Node, one: _Operand, other: _Operand, walk: Walk) -> None:
    """Couple the axes that are summed over, and note where that is felt: at the activation, the first if both are."""
    left, right = required(node, 0), required(node, 1)
    reached = walk.couple(one.axes[one.summed], other.axes[other.summed], f"reaches a fixed axis in {label(node)}")
    if reached is not None and one.shape[one.summed] is None:
        walk.pin(reached, f"reaches a dynamic axis in {label(node)}")
        return
    if right.const_value is not None:
        walk.contract(node, slot=0, axis=one.summed, ids=reached, weight=(right, other.summed))
    elif left.const_value is not None:
        walk.contract(node, slot=1, axis=other.summed, ids=reached, weight=(left, one.summed))
    else:
        walk.contract(node, slot=0, axis=one.summed, ids=reached, weight=None)
        walk.evidence.extend((ids, "head_dims") for ids in (reached, *one.made, *other.made) if ids is not None)


RULES: dict[str, Rule] = {
    "MatMul": matrix_product,
    "com.microsoft::FusedMatMul": matrix_product,
    "Gemm": gemm,
    "com.microsoft::FusedGemm": gemm,
}
