"""Which channels of each value pruning left, noted in the graph: how a narrow value lies in the wide one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

METADATA_KEY = "serveprune.kept_channels"
"""Among a graph file's ``metadata_props``; its value is JSON, see `write_kept_channels`."""

_REVISION = 1


@dataclass(frozen=True, slots=True, eq=False)
class KeptPositions:
    """What is left of one axis.

    Attributes:
        length: Positions before anything was removed.
        positions: ``(kept,)`` int64, ascending: which of them are left.
    """

    length: int
    positions: NDArray[np.int64]

    def after(self, later: "KeptPositions") -> "KeptPositions":
        """Return what is left once a later removal has taken more of the positions left here."""
        return KeptPositions(self.length, self.positions[later.positions])


KeptChannels = Mapping[str, Mapping[int, KeptPositions]]
"""Value -> axis -> what is left of it; what is not named is whole."""


def read_kept_channels(model: ir.Model) -> KeptChannels:
    """Return what earlier passes wrote into a graph; nothing, if they removed nothing or wrote another form."""
    text = model.metadata_props.get(METADATA_KEY)
    found = json.loads(text) if text else {}
    if found.get("revision") != _REVISION:
        return {}
    axes = [_unpacked(length, bits) for length, bits in found["axes"]]
    return {
        name: {int(axis): axes[place] for axis, place in placed.items()} for name, placed in found["values"].items()
    }


def write_kept_channels(model: ir.Model, removed: KeptChannels) -> None:
    """Note in a graph what a removal left of its values, on top of what earlier removals left.

    The form is ``{"revision": 1, "axes": [[length, bits in hexadecimal]], "values": {name: {axis: index in axes}}}``.

    Args:
        model: The graph after the removal; changed in place.
        removed: What this removal left, counted in positions of the graph before it.
    """
    earlier = read_kept_channels(model)
    present = {output.name for node in model.graph for output in node.outputs}
    axes: dict[tuple[int, str], int] = {}
    values: dict[str, dict[str, int]] = {}
    for name in (name for name in dict.fromkeys((*earlier, *removed)) if name in present):
        before, after = earlier.get(name, {}), removed.get(name, {})
        for axis in sorted({*before, *after}):
            kept = before[axis].after(after[axis]) if axis in before and axis in after else {**before, **after}[axis]
            values.setdefault(name, {})[str(axis)] = axes.setdefault(_packed(kept), len(axes))
    noted = {"revision": _REVISION, "axes": list(axes), "values": values}
    model.metadata_props[METADATA_KEY] = json.dumps(noted, separators=(",", ":"))


def _packed(kept: KeptPositions) -> tuple[int, str]:
    left = np.zeros(kept.length, np.bool_)
    left[kept.positions] = True
    return kept.length, np.packbits(left).tobytes().hex()


def _unpacked(length: int, bits: str) -> KeptPositions:
    left = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=length)
    return KeptPositions(length, np.flatnonzero(left).astype(np.int64))
