"""Where the windows of a convolution or a pooling lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from serveprune.graph.node import attribute, integers


@dataclass(frozen=True, slots=True)
class Window:
    """A window that slides over space, as a node's attributes describe it.

    Attributes:
        kernel: Its sizes, one per axis of space.
        strides: Its steps.
        dilations: Distances between its taps.
        mode: `auto_pad`.
        declared: Pads, all beginnings and then all ends.
        rounds_up: Whether a last window may reach beyond the padded data.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    mode: str
    declared: tuple[int, ...]
    rounds_up: bool

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int]) -> "Window":
        """Read a node's attributes."""
        rank = len(kernel)
        return cls(
            tuple(kernel),
            integers(node, "strides") or (1,) * rank,
            integers(node, "dilations") or (1,) * rank,
            str(attribute(node, "auto_pad", "NOTSET")),
            integers(node, "pads") or (0,) * (2 * rank),
            bool(attribute(node, "ceil_mode", 0)),
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """Positions that a window spans, per axis."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))

    def pads(self, space: Sequence[int]) -> list[tuple[int, int]]:
        """Return the padding before and after each axis of space."""
        if self.mode == "VALID":
            return [(0, 0)] * len(self.kernel)
        if self.mode in ("SAME_UPPER", "SAME_LOWER"):
            found = []
            for size, stride, reach in zip(space, self.strides, self.reach, strict=True):
                total = max((-(-size // stride) - 1) * stride + reach - size, 0)
                found.append(share(total, lower=self.mode == "SAME_LOWER"))
            return found
        rank = len(self.kernel)
        return list(zip(self.declared[:rank], self.declared[rank:], strict=True))

    def overhang(self, space: Sequence[int], pads: Sequence[tuple[int, int]]) -> list[int]:
        """Return how far the last windows reach beyond the padded data, where the node rounds sizes up.

        A window that would begin in the padding at the end does not count.
        """
        if not self.rounds_up:
            return [0] * len(self.kernel)
        found = []
        for size, (before, after), stride, reach in zip(space, pads, self.strides, self.reach, strict=True):
            windows = -(-(size + before + after - reach) // stride) + 1
            if (windows - 1) * stride >= size + before:
                windows -= 1
            found.append(max((windows - 1) * stride + reach - (size + before + after), 0))
        return found


def share(total: int, *, lower: bool) -> tuple[int, int]:
    """Split a padding in two; the odd one goes to the end, or with ``lower`` to the beginning."""
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Return pads in torch's order: last axis first."""
    return [amount for pair in reversed(pads) for amount in pair]
