"""Attention as one operator, of ONNX's own domain and of ONNX Runtime's."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, optional
from serveprune.graph.executor.operators.rotary import rotated, turns
from serveprune.graph.node import attribute, given, integers, label


def _attention(node: ir.Node) -> Kernel:
    """``Attention`` of opset 23: ``(B, h, S, d)``, or ``(B, S, h d)`` with head counts as attributes."""
    heads, shared = int(attribute(node, "q_num_heads", 0)), int(attribute(node, "kv_num_heads", 0))
    causal, softcap = bool(attribute(node, "is_causal", 0)), float(attribute(node, "softcap", 0.0))
    scale, shown = attribute(node, "scale"), int(attribute(node, "qk_matmul_output_mode", 0))
    shows = len(node.outputs) > 3 and bool(node.outputs[3].name)
    if given(node, 6) is not None:
        raise InvalidArgument(f"expected {label(node)} without lengths of its cache, which have no kernel here")

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor]:
        flat = needed(inputs, 0).ndim == 3
        query, keys, values = (
            _heads(needed(inputs, slot), heads if slot == 0 else shared) if flat else needed(inputs, slot)
            for slot in range(3)
        )
        keys, values = _grown(optional(inputs, 4), keys), _grown(optional(inputs, 5), values)
        past = optional(inputs, 4)
        bias = _completed(_added(optional(inputs, 3), query), keys.shape[2])
        if causal:
            bias = _sum(bias, _causal(query, keys, offset=0 if past is None else past.shape[2]))
        if not shows:
            made, seen = attended(query, keys, values, bias=bias, scale=scale, softcap=softcap), query
        else:
            steps = _stepwise(query, keys, values, bias=bias, scale=scale, softcap=softcap)
            made, seen = steps[-1], steps[shown]
        return _flat(made) if flat else made, keys, values, seen

    return kernel


def _multi_head_attention(node: ir.Node) -> Kernel:
    """``com.microsoft::MultiHeadAttention``: ``(B, S, h d)``, keys also ``(B, h, T, d)``; one bias for all three."""
    heads, scale = int(attribute(node, "num_heads", 1)), attribute(node, "scale")
    causal, low = bool(attribute(node, "unidirectional", 0)), float(attribute(node, "mask_filter_value", -10000.0))
    if any(given(node, slot) is None for slot in (1, 2)) or any(given(node, slot) is not None for slot in (8, 9)):
        raise InvalidArgument(
            f"expected {label(node)} with query, keys and values apart, and no cache shared by beams: the other forms "
            "have no kernel here"
        )

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor]:
        three = (needed(inputs, slot) for slot in range(3))
        query, keys, values = (part if part.ndim == 4 else _heads(part, heads) for part in three)
        bias = optional(inputs, 3)
        if bias is not None:
            sizes = [heads * part.shape[3] for part in (query, keys, values)]
            query, keys, values = (
                part + own.reshape(heads, 1, -1)
                for part, own in zip((query, keys, values), torch.split(bias, sizes), strict=True)
            )
        keys, values = _grown(optional(inputs, 6), keys), _grown(optional(inputs, 7), values)
        added = _sum(_padding(optional(inputs, 4), query, keys, low), optional(inputs, 5))
        if causal:
            added = _sum(added, _causal(query, keys, offset=keys.shape[2] - query.shape[2]))
        return _flat(attended(query, keys, values, bias=added, scale=scale)), keys, values

    return kernel


def _projecting_attention(node: ir.Node) -> Kernel:
    """``com.microsoft::Attention``: ``(B, S, E)`` with weights ``(E, q + k + v)`` and a bias."""
    heads, scale = int(attribute(node, "num_heads", 1)), attribute(node, "scale")
    causal, low = bool(attribute(node, "unidirectional", 0)), float(attribute(node, "mask_filter_value", -10000.0))
    declared = integers(node, "qkv_hidden_sizes")
    if attribute(node, "do_rotary", 0) or given(node, 6) is not None:
        raise InvalidArgument(f"expected {label(node)} without rotation and buffered cache, which have no kernel here")

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor]:
        weight, bias = needed(inputs, 1), optional(inputs, 2)
        projected = needed(inputs, 0) @ weight
        projected = projected if bias is None else projected + bias
        sizes = list(declared or (weight.shape[1] // 3,) * 3)
        query, keys, values = (_heads(part, heads) for part in torch.split(projected, sizes, dim=2))
        past = optional(inputs, 4)
        if past is not None:
            keys, values = _grown(past[0], keys), _grown(past[1], values)
        added = _sum(_padding(optional(inputs, 3), query, keys, low), optional(inputs, 5))
        if causal:
            added = _sum(added, _causal(query, keys, offset=keys.shape[2] - query.shape[2]))
        present = torch.stack([keys, values]) if keys.shape == values.shape else keys
        return _flat(attended(query, keys, values, bias=added, scale=scale)), present

    return kernel


def _grouped_query_attention(node: ir.Node) -> Kernel:
    """``com.microsoft::GroupQueryAttention`` without cache: ``(B, S, h d)`` and two ``(B, S, kv d)``, causal."""
    heads, shared = int(attribute(node, "num_heads", 1)), int(attribute(node, "kv_num_heads", 1))
    scale, softcap = attribute(node, "scale") or None, float(attribute(node, "softcap", 0.0))
    window, interleaved = int(attribute(node, "local_window_size", -1)), bool(attribute(node, "rotary_interleaved", 0))
    rotary = bool(attribute(node, "do_rotary", 0))
    if any(given(node, slot) is not None for slot in (3, 4, 11)) or attribute(node, "smooth_softmax", 0) == 1:
        raise InvalidArgument(f"expected {label(node)} without cache and sinks, which have no kernel here")

    def kernel(inputs: Inputs, run: Run) -> Sequence[Tensor]:
        query, keys, values = needed(inputs, 0), optional(inputs, 1), optional(inputs, 2)
        if keys is None or values is None:
            size = query.shape[2] // (heads + 2 * shared)
            query, keys, values = torch.split(query, [heads * size, shared * size, shared * size], dim=2)
        query, keys, values = _heads(query, heads), _heads(keys, shared), _heads(values, shared)
        if rotary:
            angles = turns(needed(inputs, 7), needed(inputs, 8), optional(inputs, 9), length=query.shape[2])
            query, keys = (rotated(part, *angles, interleaved=interleaved) for part in (query, keys))
        places = torch.arange(keys.shape[2], device=query.device)
        hidden = places > needed(inputs, 5).reshape(-1, 1, 1, 1)
        if window > 0:
            hidden = hidden | (places <= places.reshape(-1, 1) - window)
        bias = _sum(_sum(_hidden(hidden, query), _causal(query, keys, offset=0)), optional(inputs, 10))
        made = attended(query, keys, values, bias=bias, scale=scale, softcap=softcap)
        return _flat(made), keys, values

    return kernel


def attended(
    query: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor | None, scale: float | None, softcap: float = 0.0
) -> Tensor:
    """Return ``(B, h, S, v)`` for a query ``(B, h, S, d)``, keys ``(B, kv, T, d)`` and values ``(B, kv, T, v)``.

    Args:
        query: Its heads share keys in runs of ``h / kv``.
        keys: Of one dtype with all others.
        values: Their size may differ.
        bias: Added to the scores, ``(..., S, T)``, broadcast over the axes it lacks.
        scale: Of the scores; one over the root of ``d`` when None.
        softcap: Above zero, scores stay within it.
    """
    if softcap > 0:
        return _stepwise(query, keys, values, bias=bias, scale=scale, softcap=softcap)[-1]
    keys, values = _repeated(keys, query), _repeated(values, query)
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale)


def _stepwise(
    query: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor | None, scale: float | None, softcap: float
) -> list[Tensor]:
    """Return the products, these capped, with the bias, as shares, and then what `attended` returns."""
    keys, values = _repeated(keys, query), _repeated(values, query)
    scores = (query @ keys.transpose(2, 3)) * (query.shape[3] ** -0.5 if scale is None else scale)
    capped = softcap * torch.tanh(scores / softcap) if softcap > 0 else scores
    biased = capped if bias is None else capped + bias
    shares = biased.softmax(dim=3)
    return [scores, capped, biased, shares, shares @ values]


def _repeated(shared: Tensor, query: Tensor) -> Tensor:
    times = query.shape[1] // shared.shape[1]
    return shared if times == 1 else shared.repeat_interleave(times, dim=1)


def _heads(data: Tensor, heads: int) -> Tensor:
    return data.reshape(*data.shape[:2], heads, -1).transpose(1, 2)


def _flat(data: Tensor) -> Tensor:
    return data.transpose(1, 2).flatten(2)


def _grown(past: Tensor | None, present: Tensor) -> Tensor:
    return present if past is None else torch.cat([past, present], dim=2)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other


def _hidden(mask: Tensor, like: Tensor) -> Tensor:
    """Return a bias that hides what a mask marks; finite, so that a row without anything visible has a gradient."""
    # Two of them, added, are still finite.
    low = torch.finfo(like.dtype).min / 4
    return torch.zeros((), dtype=like.dtype, device=like.device).masked_fill(mask, low)


def _causal(query: Tensor, keys: Tensor, *, offset: int) -> Tensor:
    """Return ``(S, T)`` that hides the keys after each query, of which the first is at the offset."""
    sizes = (query.shape[2], keys.shape[2])
    hidden = torch.ones(sizes, dtype=torch.bool, device=query.device).triu(offset + 1)
    return _hidden(hidden, query)


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask as what is added to scores; of booleans the true ones are seen."""
    return _hidden(~mask, like) if mask is not None and mask.dtype == torch.bool else mask


def _completed(bias: Tensor | None, keys: int) -> Tensor | None:
    """Hide the keys that a mask does not reach."""
    if bias is None or bias.shape[-1] in (1, keys):
        return bias
    return functional.pad(bias, (0, keys - bias.shape[-1]), value=torch.finfo(bias.dtype).min / 4)


def _padding(mask: Tensor | None, query: Tensor, keys: Tensor, low: float) -> Tensor | None:
    """Return ``(B, 1, 1 or S, T)`` that lowers scores of padding.

    Args:
        mask: ``(B, T)``, ``(B, S, T)`` or ``(B, 1, M, M)`` with zero for padding, ``(B,)`` lengths, or ``(2 B,)`` ends
            and then starts.
        query: ``(B, h, S, d)``.
        keys: ``(B, h, T, d)``.
        low: Added where padding is.
    """
    if mask is None:
        return None
    batch, length, total = query.shape[0], query.shape[2], keys.shape[2]
    if mask.ndim == 1:
        places, bounds = torch.arange(total, device=mask.device), mask.reshape(-1, batch, 1)
        seen = places < bounds[0]
        if len(bounds) == 2:
            seen = seen & (places >= bounds[1])
    else:
        seen = mask > 0
    if seen.ndim == 4:
        seen = seen[:, :, total - length : total, :total]
    else:
        seen = seen.unsqueeze(1) if seen.ndim == 3 else seen[:, None, None]
    return torch.zeros((), dtype=query.dtype, device=query.device).masked_fill(~seen, low)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Attention": Operator(_attention),
        "com.microsoft::Attention": Operator(_projecting_attention, weights=(1, 2)),
        "com.microsoft::MultiHeadAttention": Operator(_multi_head_attention, weights=(3,)),
        "com.microsoft::GroupQueryAttention": Operator(_grouped_query_attention),
    }
)
