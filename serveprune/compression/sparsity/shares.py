"""How many zeros each weight gets."""

from collections.abc import Mapping
from dataclasses import dataclass

from serveprune.compression.sparsity.masks import Mask, group_mask, layer_mask, output_mask, zeros_by_layer
from serveprune.config.sparsity import WeightPruneOptions
from serveprune.oip.tensor import Array


@dataclass(frozen=True, slots=True)
class Pattern:
    """``kept`` of every ``group`` neighbouring inputs."""

    kept: int
    group: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one weight gets.

    Attributes:
        zeros: How many, with those it has.
        pattern: Where they lie, if that is told.
    """

    zeros: int
    pattern: Pattern | None = None

    def mask(self, scores: Array, *, by_output: bool = False) -> Mask:
        """Return which weights of ``(outputs, inputs)`` are left: those with the greatest scores."""
        if self.pattern is not None:
            return group_mask(scores, kept=self.pattern.kept, group=self.pattern.group)
        return (output_mask if by_output else layer_mask)(scores, zeros=self.zeros)


def share_out(
    sizes: Mapping[str, int], *, sparsity: float, options: WeightPruneOptions, scores: Mapping[str, Array] | None = None
) -> dict[str, Share]:
    """Return the share of each weight.

    Args:
        sizes: Elements of all weights by name.
        sparsity: Zeros / weights after this round.
        options: The profile's.
        scores: Under scope ``global``, of those weights that compete; the others get the target as it is.
    """
    pattern = None
    if options.kept_of_group is not None:
        kept, group = options.kept_of_group
        # On the way to the pattern more of each group are left.
        pattern = Pattern(max(kept, group - round(sparsity * group)), group)
    shares = {name: Share(round(sparsity * size), pattern) for name, size in sizes.items()}
    if options.scope == "global" and scores:
        shares |= {name: Share(zeros) for name, zeros in zeros_by_layer(scores, sparsity=sparsity).items()}
    return shares
