from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Widths = NDArray[np.int64]
"""Units kept of every group, in the order of ``DependencyGraph.groups``; 0 where the block around it is gone."""


class CostModel(Protocol):
    """What a model costs by the widths of its groups; the cost of one may depend on the width of another."""

    @property
    def dense(self) -> Widths:
        """The widths before anything is removed."""
        ...

    def total(self, widths: Widths) -> float:
        """Return the cost of the whole model."""
        ...

    def along(self, group: int, *, widths: Widths, candidates: Widths) -> NDArray[np.float64]:
        """Return the cost of the whole model for each width one group may take, the others as given."""
        ...
