from collections.abc import Mapping, Sequence

import onnx_ir as ir

from serveprune.compression.pruning.dependency_graph import DependencyGraph, PruningGroup
from serveprune.compression.pruning.gradients import GradientMethod, GradientSource, unit_scores
from serveprune.compression.pruning.importance import Consumer, RemovalOrder, by_score
from serveprune.compression.pruning.linear import Matrix
from serveprune.compression.pruning.statistics import Moments
from serveprune.oip.tensor import Array


class GradientImportance:
    """What the loss feels of a unit: Taylor (Molchanov et al., 1906.10771) or Fisher (Kwon et al., 2204.09656)."""

    needs_moments = False

    def __init__(
        self,
        method: GradientMethod,
        *,
        model: ir.Model,
        graph: DependencyGraph,
        groups: Sequence[PruningGroup],
        source: GradientSource,
    ) -> None:
        """Compute nothing yet: one pass over the samples serves all groups, when the first is asked for.

        Args:
            method: See `gradients.unit_scores`.
            model: The dense graph; not changed.
            graph: What goes together in it.
            groups: All that `order` will be asked for.
            source: The samples and the loss.
        """
        self._method = method
        self._model = model
        self._graph = graph
        self._groups = groups
        self._source = source
        self._scores: dict[str, Matrix] = {}

    def order(
        self,
        group: PruningGroup,
        consumers: Sequence[Consumer],
        *,
        weights: Mapping[str, Array],
        moments: Mapping[str, Moments],
    ) -> RemovalOrder:
        """See `Importance.order`; errors are the share of what the loss feels of the whole group."""
        if not self._scores:
            self._scores = unit_scores(self._model, self._graph, self._groups, method=self._method, source=self._source)
        return by_score(self._scores[group.name])
