"""Positions as angles that pairs of dims are turned by (Su et al., 2104.09864)."""

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.node import attribute


def _rotary_embedding(node: ir.Node) -> Kernel:
    """``(B, h, S, d)``, or ``(B, S, h d)``; the first dims of a head turn in pairs."""
    own = node.domain in ("", "ai.onnx")
    cosines, sines, positions = (1, 2, 3) if own else (2, 3, 1)
    heads, turning = int(attribute(node, "num_heads", 0)), int(attribute(node, "rotary_embedding_dim", 0))
    interleaved = bool(attribute(node, "interleaved", 0))

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data, table = needed(inputs, 0), needed(inputs, cosines)
        flat = data.ndim == 3
        if flat:
            size = data.shape[2] // heads if heads else turning or 2 * table.shape[-1]
            data = data.reshape(*data.shape[:2], -1, size).transpose(1, 2)
        angles = turns(table, needed(inputs, sines), optional(inputs, positions), length=data.shape[2])
        made = rotated(data, *angles, interleaved=interleaved)
        return made.transpose(1, 2).flatten(2) if flat else made

    return kernel


def turns(cosines: Tensor, sines: Tensor, positions: Tensor | None, *, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines ``(B or 1, S, pairs)`` of the positions.

    Args:
        cosines: ``(positions, pairs)``, or already chosen ``(B, S, pairs)``.
        sines: Likewise.
        positions: ``(B, S)``, or the first position of all; None when they are chosen, or count from zero.
        length: ``S``.
    """
    if cosines.ndim == 3:
        return cosines, sines
    if positions is None or positions.numel() == 1:
        first = 0 if positions is None else positions.reshape(())
        positions = (torch.arange(length, device=cosines.device) + first).unsqueeze(0)
    return cosines[positions], sines[positions]


def rotated(data: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool) -> Tensor:
    """Turn pairs of dims of ``(B, h, S, d)``: neighbours when interleaved, else one of each half."""
    size = 2 * cosines.shape[-1]
    turning, rest = data[..., :size], data[..., size:]
    one, other = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    pair = (one * cosines - other * sines, one * sines + other * cosines)
    made = torch.stack(pair, dim=-1).flatten(3) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat([made, rest], dim=-1) if rest.shape[-1] else made


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "RotaryEmbedding": Operator(_rotary_embedding),
        "com.microsoft::RotaryEmbedding": Operator(_rotary_embedding),
    }
)
