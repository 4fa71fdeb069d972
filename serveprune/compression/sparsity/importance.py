"""How much single weights count; the less, the sooner they become zero."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.gradients import GradientMethod, GradientSource, weight_scores
from serveprune.compression.pruning.statistics import collect_moments
from serveprune.compression.sparsity.prunable_weights import PrunableWeight
from serveprune.errors import Internal
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.node import constant
from serveprune.oip.tensor import Array

Comparison = Literal["layer", "output"]
"""Whether weights of a layer compete with each other, or only those of one output."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What scores may be taken from.

    Attributes:
        model: The graph as it is now, zeros of earlier rounds included; not to be changed.
        samples: Inputs; ``None`` for an importance that does not learn.
        workspace: For pieces of the graph.
        threads: Compute threads.
        seed: Of every random choice.
        source: Of what gradients are taken; ``None`` for an importance that takes none.
    """

    model: ir.Model
    samples: Dataset | None
    workspace: Path
    threads: int
    seed: int
    source: GradientSource | None = None

    def matrix(self, weight: PrunableWeight) -> Array:
        """Return a weight as ``(outputs, inputs)``."""
        array = constant(self.model.graph.initializers[weight.name])
        assert array is not None
        return weight.matrix(array)


class WeightImportance(Protocol):
    """Scores every weight of a graph. Methods that need more than one layer at a time see all of them.

    Attributes:
        comparison: What competes under scope ``layer``; under scope ``global`` all of them do.
    """

    comparison: Comparison

    def scores(self, weights: Sequence[PrunableWeight], *, scoring: Scoring) -> Mapping[str, Array]:
        """Return ``(outputs, inputs)`` of scores from 0 by weight name, comparable across layers.

        A weight it has no scores for is left out, and is then judged by its magnitude, within its layer.
        """
        ...


class WeightMagnitude:
    """The absolute value (Han et al., 1506.02626)."""

    comparison: Comparison = "layer"

    def scores(self, weights: Sequence[PrunableWeight], *, scoring: Scoring) -> Mapping[str, Array]:
        """See `WeightImportance.scores`."""
        return {weight.name: np.abs(scoring.matrix(weight)) for weight in weights}


class RandomWeights:
    """The control that every other method has to beat."""

    comparison: Comparison = "layer"

    def scores(self, weights: Sequence[PrunableWeight], *, scoring: Scoring) -> Mapping[str, Array]:
        """See `WeightImportance.scores`."""
        generator = np.random.default_rng(scoring.seed)
        return {weight.name: generator.random(scoring.matrix(weight).shape) for weight in weights}


class Wanda:
    """Absolute value times the norm of what it is multiplied by (Wanda, 2306.11695).

    Its square is what the weight alone adds to the energy of its output; the share of the layer's energy makes
    layers comparable.
    """

    comparison: Comparison = "output"

    def scores(self, weights: Sequence[PrunableWeight], *, scoring: Scoring) -> Mapping[str, Array]:
        """See `WeightImportance.scores`."""
        assert scoring.samples is not None
        maps = [weight.map for weight in weights if weight.map is not None]
        moments = collect_moments(
            maps, model=scoring.model, samples=scoring.samples, workspace=scoring.workspace, threads=scoring.threads
        )
        found = {}
        for weight in weights:
            if weight.map is None:
                continue
            seen = moments[weight.map.node]
            array = constant(scoring.model.graph.initializers[weight.name])
            assert array is not None
            norms = np.sqrt(np.diag(seen.xx)[weight.columns(array)])
            energy = max(float(seen.yy.sum()), np.finfo(np.float64).tiny)
            found[weight.name] = np.abs(weight.matrix(array)) * norms / np.sqrt(energy)
        return found


class WeightGradients:
    """What a loss feels of each weight, by gradients; see `gradients.weight_scores`."""

    comparison: Comparison = "layer"

    def __init__(self, method: GradientMethod) -> None:
        self._method = method

    def scores(self, weights: Sequence[PrunableWeight], *, scoring: Scoring) -> Mapping[str, Array]:
        """See `WeightImportance.scores`."""
        assert scoring.source is not None
        names = [weight.name for weight in weights]
        found = weight_scores(scoring.model, names, method=self._method, source=scoring.source)
        return {weight.name: weight.matrix(found[weight.name]) for weight in weights if weight.name in found}


_IMPORTANCES: Mapping[str, Callable[[], WeightImportance]] = MappingProxyType(
    {
        "magnitude": WeightMagnitude,
        "wanda": Wanda,
        "taylor": partial(WeightGradients, "taylor"),
        "fisher": partial(WeightGradients, "fisher"),
        "random": RandomWeights,
    }
)


def importance_named(name: str) -> WeightImportance:
    """Return an importance by its name in the options."""
    if name not in _IMPORTANCES:
        raise Internal(f"no weight importance is named {name}; known: {', '.join(_IMPORTANCES)}")
    return _IMPORTANCES[name]()
