"""Resize and Upsample, one axis after the other, as ONNX Runtime computes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.operator import Inputs, Kernel, Operator, Run, needed, numbers, opset, optional
from serveprune.graph.node import attribute, integers, label
from serveprune.oip.tensor import Array

_COORDINATES_DECLARED = 11


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis before and after.

    Attributes:
        scale: Positions after per position before, float32.
        region: Start and end of what is taken of it, as shares of its length.
    """

    before: int
    after: int
    scale: np.float32
    region: tuple[float, float]


def _half_pixel(at: Array, axis: _Axis) -> Array:
    return (at + np.float32(0.5)) / axis.scale - np.float32(0.5)


def _symmetric(at: Array, axis: _Axis) -> Array:
    moved = np.float32(axis.before / 2) * (1 - np.float32(axis.after) / (axis.scale * np.float32(axis.before)))
    # In float64 until the end, unlike the others: it decides ties.
    return (moved + (at.astype(np.float64) + 0.5) / float(axis.scale) - 0.5).astype(np.float32)


def _corners(at: Array, axis: _Axis) -> Array:
    return at * 0 if axis.after == 1 else at * np.float32(axis.before - 1) / np.float32(axis.after - 1)


def _region(at: Array, axis: _Axis) -> Array:
    start, end = (np.float32(share) for share in axis.region)
    last = np.float32(axis.before - 1)
    if axis.after == 1:
        return at * 0 + np.float32(0.5) * (start + end) * last
    return start * last + at * (end - start) * last / np.float32(axis.after - 1)


_COORDINATES: Mapping[str, Callable[[Array, _Axis], Array]] = MappingProxyType(
    {
        "half_pixel": _half_pixel,
        "half_pixel_symmetric": _symmetric,
        "pytorch_half_pixel": lambda at, axis: _half_pixel(at, axis) if axis.after > 1 else at * 0,
        "align_corners": _corners,
        "asymmetric": lambda at, axis: at / axis.scale,
        "tf_half_pixel_for_nn": lambda at, axis: (at + np.float32(0.5)) / axis.scale,
        "tf_crop_and_resize": _region,
    }
)
"""Where a position after lies before, in float32, which decides how ties are rounded."""

_NEAREST: Mapping[str, Callable[[Array, _Axis], Array]] = MappingProxyType(
    {
        "round_prefer_floor": lambda at, axis: np.ceil(at - np.float32(0.5)),
        "round_prefer_ceil": lambda at, axis: np.floor(at + np.float32(0.5)),
        "floor": lambda at, axis: np.floor(at),
        "ceil": lambda at, axis: np.ceil(at),
        # Before opset 11.
        "": lambda at, axis: np.ceil(at) if axis.scale < 1 else np.trunc(at),
    }
)


@dataclass(frozen=True, slots=True)
class _Method:
    """What the attributes of a node say."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    excludes_outside: bool
    extrapolated: float
    policy: str

    @classmethod
    def of(cls, node: ir.Node) -> "_Method":
        old = node.op_type == "Upsample" or opset(node) < _COORDINATES_DECLARED
        found = cls(
            mode=str(attribute(node, "mode", "nearest")),
            coordinates=str(attribute(node, "coordinate_transformation_mode", "asymmetric" if old else "half_pixel")),
            nearest=str(attribute(node, "nearest_mode", "" if old else "round_prefer_floor")),
            cubic=float(attribute(node, "cubic_coeff_a", -0.75)),
            excludes_outside=bool(attribute(node, "exclude_outside", 0)),
            extrapolated=float(attribute(node, "extrapolation_value", 0.0)),
            policy=str(attribute(node, "keep_aspect_ratio_policy", "stretch")),
        )
        for given, known in (
            (found.mode, ("nearest", "linear", "cubic")),
            (found.coordinates, _COORDINATES),
            (found.nearest, _NEAREST),
        ):
            if given not in known:
                raise InvalidArgument(f"expected one of {', '.join(filter(None, known))} in {label(node)}; got {given}")
        if attribute(node, "antialias", 0):
            raise InvalidArgument(f"expected {label(node)} without antialias, which has no differentiable kernel here")
        return found


def _resize(node: ir.Node) -> Kernel:
    method, chosen = _Method.of(node), integers(node, "axes")
    declared = attribute(node, "scales")
    first = 1 if node.op_type == "Upsample" or opset(node) < _COORDINATES_DECLARED else 2

    def kernel(inputs: Inputs, run: Run) -> Tensor:
        data = needed(inputs, 0)
        axes = [axis % data.ndim for axis in chosen or range(data.ndim)]
        region = _floats(optional(inputs, 1) if first == 2 else None) or [*[0.0] * len(axes), *[1.0] * len(axes)]
        regions = list(zip(region[: len(axes)], region[len(axes) :], strict=True))
        scales = _floats(optional(inputs, first)) or list(declared or ())
        before = [data.shape[axis] for axis in axes]
        measured = _scaled(before, scales) if scales else _sized(before, numbers(inputs, 3) or [], method.policy)
        return _resampled(
            data,
            {
                axis: _Axis(size, after, scale, taken)
                for axis, size, (after, scale), taken in zip(axes, before, measured, regions, strict=True)
            },
            method,
        )

    return kernel


def _scaled(before: Sequence[int], scales: Sequence[float]) -> list[tuple[int, np.float32]]:
    return [
        (int(np.float32(size) * np.float32(scale)), np.float32(scale))
        for size, scale in zip(before, scales, strict=True)
    ]


def _sized(before: Sequence[int], sizes: Sequence[int], policy: str) -> list[tuple[int, np.float32]]:
    ratios = [np.float32(after) / np.float32(size) for size, after in zip(before, sizes, strict=True)]
    if policy == "stretch":
        return list(zip(sizes, ratios, strict=True))
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [(int(np.floor(ratio * np.float32(size) + np.float32(0.5))), ratio) for size in before]


def _floats(value: Tensor | None) -> list[float]:
    return [] if value is None else [float(item) for item in value.reshape(-1).tolist()]


def _resampled(data: Tensor, axes: Mapping[int, _Axis], method: _Method) -> Tensor:
    changed = {axis: found for axis, found in axes.items() if not _unchanged(found, method)}
    fused = _fused(data, changed, method)
    if fused is not None:
        return fused
    outside = torch.zeros((), dtype=torch.bool, device=data.device)
    for axis, found in changed.items():
        at = _COORDINATES[method.coordinates](np.arange(found.after, dtype=np.float32), found)
        places, shares = _taps(at, found, method)
        shape = (-1, *(1,) * (data.ndim - 1 - axis))
        picked = [data.index_select(axis, torch.from_numpy(place).to(data.device)) for place in places]
        if method.mode == "nearest":
            (data,) = picked
        else:
            weights = [torch.from_numpy(share).to(data).reshape(shape) for share in shares]
            data = torch.stack([weight * pick for weight, pick in zip(weights, picked, strict=True)]).sum(dim=0)
        if method.coordinates == "tf_crop_and_resize":
            beyond = (at < 0) | (at > found.before - 1)
            outside = outside | torch.from_numpy(beyond).to(data.device).reshape(shape)
    return data.masked_fill(outside, method.extrapolated) if bool(outside.any()) else data


def _unchanged(axis: _Axis, method: _Method) -> bool:
    return axis.before == axis.after and (method.coordinates != "tf_crop_and_resize" or axis.region == (0.0, 1.0))


def _taps(at: Array, axis: _Axis, method: _Method) -> tuple[list[Array], list[Array]]:
    """Return which positions before make each position after, and with what shares."""
    last = axis.before - 1
    if method.mode == "nearest":
        return [np.clip(_NEAREST[method.nearest](at, axis), 0, last).astype(np.int64)], []
    if method.mode == "linear":
        at = np.clip(at, 0, last)
        low = np.floor(at).astype(np.int64)
        share = at - low.astype(np.float32)
        return [low, np.minimum(low + 1, last)], [1 - share, share]
    low = np.floor(at).astype(np.int64)
    distances = [np.abs(at - (low + offset).astype(np.float32)) for offset in (-1, 0, 1, 2)]
    shares = [_cubic(distance, method.cubic) for distance in distances]
    places = [low + offset for offset in (-1, 0, 1, 2)]
    if method.excludes_outside:
        shares = [
            np.where((place >= 0) & (place <= last), share, 0) for place, share in zip(places, shares, strict=True)
        ]
        whole = np.sum(shares, axis=0)
        shares = [share / whole for share in shares]
    return [np.clip(place, 0, last) for place in places], shares


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel (1981), at distances of up to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _fused(data: Tensor, axes: Mapping[int, _Axis], method: _Method) -> Tensor | None:
    """Resample images with torch's own kernels, which are faster, where they mean the same."""
    if data.ndim != 4 or list(axes) != [2, 3]:
        return None
    found = list(axes.values())
    size = [axis.after for axis in found]
    if method.mode == "nearest":
        if not all(_repeats(axis, method) for axis in found):
            return None
        return functional.interpolate(data, size=size, mode="nearest")
    exact = all(np.float32(axis.after) == axis.scale * np.float32(axis.before) for axis in found)
    aligned = method.coordinates == "align_corners"
    if not (aligned or (method.coordinates == "half_pixel" and exact)):
        return None
    if method.mode == "linear":
        return functional.interpolate(data, size=size, mode="bilinear", align_corners=aligned)
    if method.cubic != -0.75 or method.excludes_outside:
        return None
    return functional.interpolate(data, size=size, mode="bicubic", align_corners=aligned)


def _repeats(axis: _Axis, method: _Method) -> bool:
    """Tell whether every position comes so many times in a row."""
    if axis.after % axis.before or method.coordinates == "tf_crop_and_resize":
        return False
    at = _COORDINATES[method.coordinates](np.arange(axis.after, dtype=np.float32), axis)
    (places,), _ = _taps(at, axis, method)
    return np.array_equal(places, np.repeat(np.arange(axis.before), axis.after // axis.before))


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Resize": Operator(_resize, settings=(1, 2, 3)),
        "Upsample": Operator(_resize, settings=(1,)),
    }
)
