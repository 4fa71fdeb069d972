"""One graph on its way to a sparsity: rounds of scores and masks, or of reconstruction."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.gradients import GradientSource
from serveprune.compression.sparsity.importance import Scoring, WeightMagnitude, importance_named
from serveprune.compression.sparsity.layer_by_layer import reconstruct_layers, saliency_scores
from serveprune.compression.sparsity.prunable_weights import PrunableWeight
from serveprune.compression.sparsity.schedule import sparsities
from serveprune.compression.sparsity.shares import Share, share_out
from serveprune.config.sparsity import WeightPruneOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.node import constant
from serveprune.oip.tensor import Array

_LONGEST_LIST = 500


class Sparsification:
    """Sets weights of one graph to zero, in place."""

    def __init__(
        self,
        model: ir.Model,
        weights: Sequence[PrunableWeight],
        options: WeightPruneOptions,
        *,
        dense: ir.Model,
        samples: Dataset | None,
        workspace: Path,
        threads: int,
        seed: int,
        source: GradientSource | None = None,
    ) -> None:
        """Find out which weights can have the pattern that is asked for, if one is.

        Args:
            model: A prepared graph; `run` changes it.
            weights: Those that may get zeros.
            options: The profile's.
            dense: The same graph, which stays as it is.
            samples: Unlabelled inputs; ``None`` where the importance does not learn.
            workspace: Folder for what lies between.
            threads: Compute threads.
            seed: Of random importance.
            source: Of what gradients are taken, where the importance takes some.

        Raises:
            InvalidArgument: The pattern fits no weight, or the graph has as many zeros already.
        """
        self._model = model
        self._options = options
        self._dense = dense
        self._samples = samples
        self._workspace = workspace
        self._threads = threads
        self._seed = seed
        self._source = source
        self.without_pattern = self._misfits(weights)
        self.weights = tuple(weight for weight in weights if weight.name not in self.without_pattern)
        if not self.weights:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.without_pattern.items())
            raise InvalidArgument(
                f"prune: pattern {options.pattern} fits no weight of this graph: {reasons[:_LONGEST_LIST]}"
            )
        self._start = self._sparsity()
        if options.target is not None and self._start >= options.sparsity:
            raise InvalidArgument(
                f"prune: asked for a sparsity of {options.sparsity:g}, but {self._start:.3g} of these weights are zero "
                "already; ask for more"
            )

    @property
    def by_magnitude(self) -> tuple[str, ...]:
        """Weights that are judged by magnitude because their layer is no plain product, or reads a table."""
        if not self._options.learns or self._options.learns_by_gradients:
            return ()
        return tuple(weight.name for weight in self.weights if weight.map is None)

    def run(self, *, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """Go through all rounds."""
        steps = sparsities(self._options.schedule, start=self._start, target=self._options.sparsity)
        for index, sparsity in enumerate(steps):
            if self._options.importance == "reconstruction":
                self._reconstruct(sparsity, progress=_round(progress, index=index, count=len(steps)))
            else:
                self._mask(sparsity)
            progress((index + 1) / len(steps))

    def _misfits(self, weights: Sequence[PrunableWeight]) -> dict[str, str]:
        if self._options.kept_of_group is None:
            return {}
        group = self._options.kept_of_group[1]
        return {
            weight.name: f"its {inputs} inputs do not divide by {group}"
            for weight in weights
            if (inputs := weight.inputs(self._array(weight))) % group
        }

    def _sparsity(self) -> float:
        arrays = [self._array(weight) for weight in self.weights]
        return 1 - sum(int(np.count_nonzero(array)) for array in arrays) / sum(array.size for array in arrays)

    def _mask(self, sparsity: float) -> None:
        """Zero what counts least; weights without scores are judged by magnitude."""
        importance = importance_named(self._options.importance)
        scores = importance.scores(self.weights, scoring=self._scoring())
        scores = {
            weight.name: self._zeros_first(weight, scores[weight.name])
            for weight in self.weights
            if weight.name in scores
        }
        shares = self._shares(sparsity, scores)
        by_output = importance.comparison == "output" and self._options.scope == "layer"
        self._mask_by_magnitude([weight for weight in self.weights if weight.name not in scores], shares)
        for weight in self.weights:
            if weight.name in scores:
                self._apply(weight, shares[weight.name].mask(scores[weight.name], by_output=by_output))

    def _reconstruct(self, sparsity: float, *, progress: Callable[[float], None]) -> None:
        assert self._samples is not None
        mapped = [weight for weight in self.weights if weight.map is not None]
        scores: Mapping[str, Array] = {}
        if self._options.scope == "global":
            scores = saliency_scores(
                self._model, mapped, samples=self._samples, workspace=self._workspace, threads=self._threads
            )
        shares = self._shares(sparsity, scores)
        # They come first, so that the layers behind them can make up for what they lose.
        self._mask_by_magnitude([weight for weight in self.weights if weight.map is None], shares)
        reconstruct_layers(
            self._model,
            mapped,
            shares,
            dense=self._dense,
            samples=self._samples,
            workspace=self._workspace,
            threads=self._threads,
            progress=progress,
        )

    def _shares(self, sparsity: float, scores: Mapping[str, Array]) -> dict[str, Share]:
        sizes = {weight.name: self._array(weight).size for weight in self.weights}
        return share_out(sizes, sparsity=sparsity, options=self._options, scores=scores)

    def _mask_by_magnitude(self, weights: Sequence[PrunableWeight], shares: Mapping[str, Share]) -> None:
        scores = WeightMagnitude().scores(weights, scoring=self._scoring())
        for weight in weights:
            # The rows of a table are as different in length as words are frequent: none may lose all.
            self._apply(weight, shares[weight.name].mask(scores[weight.name], by_output=weight.is_table))

    def _zeros_first(self, weight: PrunableWeight, scores: Array) -> Array:
        """Return scores in which what is zero already goes before anything else."""
        return np.where(weight.matrix(self._array(weight)) == 0, -1.0, scores)

    def _apply(self, weight: PrunableWeight, kept: Array) -> None:
        value, array = self._model.graph.initializers[weight.name], self._array(weight)
        matrix = np.where(kept, weight.matrix(array), 0.0)
        value.const_value = ir.tensor(weight.array(matrix, like=array), name=value.name)

    def _scoring(self) -> Scoring:
        return Scoring(self._model, self._samples, self._workspace, self._threads, self._seed, self._source)

    def _array(self, weight: PrunableWeight) -> Array:
        array = constant(self._model.graph.initializers[weight.name])
        assert array is not None
        return array


def _round(progress: Callable[[float], None], *, index: int, count: int) -> Callable[[float], None]:
    """Return what takes the done fraction of one round."""
    return lambda done: progress((index + done) / count)
