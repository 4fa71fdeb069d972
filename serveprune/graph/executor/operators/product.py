"""Matrix products."""

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.executor.operators.activation import fused_activation
from serveprune.graph.node import attribute


def _matrix_product(inputs: Inputs, run: Run) -> Tensor:
    return torch.matmul(needed(inputs, 0), needed(inputs, 1))


def _gemm(node: ir.Node) -> Kernel:
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    turned = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
    plain = alpha == beta == 1.0

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        left, right, added = needed(inputs, 0), needed(inputs, 1), optional(inputs, 2)
        left = left.t() if turned[0] else left
        if plain and left.is_floating_point() and (added is None or added.ndim == 1):
            return functional.linear(left, right if turned[1] else right.t(), added)
        made = torch.mm(left, right.t() if turned[1] else right)
        made = made if alpha == 1.0 else (alpha * made).to(left.dtype)
        if added is None:
            return made
        return made + (added if beta == 1.0 else (beta * added).to(left.dtype))

    return kernel


def _fused_gemm(node: ir.Node) -> Kernel:
    gemm = _gemm(node)
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [float(attribute(node, name)) for name in names if name in node.attributes]
    activation = fused_activation(node, str(attribute(node, "activation", "")), parameters)

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        made = gemm(inputs, run)
        assert isinstance(made, Tensor)
        return activation(made)

    return kernel


def _fused_matrix_product(node: ir.Node) -> Kernel:
    alpha = float(attribute(node, "alpha", 1.0))
    turned = [bool(attribute(node, name, 0)) for name in ("transA", "transB")]
    moved = [bool(attribute(node, name, 0)) for name in ("transBatchA", "transBatchB")]

    def operand(value: Tensor, slot: int) -> Tensor:
        if moved[slot] and value.ndim > 2:
            # (m, batch..., k) becomes (batch..., m, k).
            value = value.movedim(0, -2)
        return value.mT if turned[slot] and value.ndim > 1 else value

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        made = torch.matmul(operand(needed(inputs, 0), 0), operand(needed(inputs, 1), 1))
        return made if alpha == 1.0 else alpha * made

    return kernel


def _einsum(node: ir.Node) -> Kernel:
    equation = str(attribute(node, "equation"))
    return lambda inputs, run: torch.einsum(equation, [value for value in inputs if value is not None])


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "MatMul": Operator(lambda node: _matrix_product, weights=(0, 1)),
        "Gemm": Operator(_gemm, weights=(0, 1, 2)),
        "Einsum": Operator(_einsum, weights=(0, 1, 2, 3)),
        "Det": Operator(lambda node: lambda inputs, run: torch.linalg.det(needed(inputs, 0))),
        "com.microsoft::FusedGemm": Operator(_fused_gemm, weights=(0, 1, 2)),
        "com.microsoft::FusedMatMul": Operator(_fused_matrix_product, weights=(0, 1)),
    }
)
