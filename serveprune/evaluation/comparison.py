from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serveprune.errors import ConfigError, FailedPrecondition
from serveprune.evaluation.answers import is_finite, own_answers
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.quality import (
    FINITE_FRACTION,
    WORST,
    SignalEnergies,
    accuracy,
    cosine,
    nearest_neighbour_agreement,
    pearson,
    row_cosines,
    spearman,
    top1_agreement,
)
from serveprune.evaluation.runnable_graph import RunnableGraph
from serveprune.evaluation.task import Task, numeric_outputs, scored_outputs
from serveprune.oip.tensor import Array, TensorSpec

_FEWEST_FOR_NEIGHBOURS = 3
_FEWEST_FOR_CORRELATION = 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every metric by name, of the tier, and the task's own metrics of dense."""

    quality: Mapping[str, float]
    dense_quality: Mapping[str, float]


def compare(
    dense: RunnableGraph,
    tier: RunnableGraph,
    dataset: Dataset,
    *,
    task: Task,
    batch_size: int,
    on_progress: Callable[[float], None],
) -> Comparison:
    """Run both graphs over the same batches and compare their answers.

    Metrics by task:

    - classification: ``top1_agreement``; ``accuracy`` where the dataset has labels.
    - embedding: ``cosine`` (mean over samples); ``nearest_neighbour_agreement`` from 3 samples on; ``pearson``
      and ``spearman`` of the pairs' cosines with the people's scores, where the dataset has pairs.
    - generic: ``cosine`` of all answers to all samples as one long vector.
    - always: ``sqnr_db``, over all numeric outputs.

    Of several outputs the worst counts; labels and scores belong to the first of `scored_outputs`. If the tier
    gives NaN or infinity for any sample, every metric has its worst value, and ``finite_fraction`` is recorded.

    Raises:
        FailedPrecondition: Dense itself gives NaN or infinity, so nothing can be compared with it.
        ConfigError: A label is not one of the classes.
    """
    answers = _Answers(task, dense.outputs, dataset)
    names = [spec.name for spec in answers.specs]
    done = 0
    for indices, feeds in dataset.batches(batch_size):
        answers.add(indices, feeds, dense.run(feeds, outputs=names), tier.run(feeds, outputs=names))
        done += len(indices)
        on_progress(done / len(dataset))
    return answers.comparison()


class _Answers:
    """What both graphs answered: rows where the task scores rows, sums for everything."""

    def __init__(self, task: Task, outputs: Sequence[TensorSpec], dataset: Dataset) -> None:
        self._task = task
        self._dataset = dataset
        self._scored = [spec.name for spec in scored_outputs(task, outputs)]
        self.specs = numeric_outputs(outputs)
        if not self._scored:
            raise FailedPrecondition(f"no output can be scored as {task}: {', '.join(spec.name for spec in outputs)}")
        self._energies = {spec.name: SignalEnergies() for spec in self.specs}
        self._dense: dict[str, Array] = {}
        self._tier: dict[str, Array] = {}
        self._broken: set[int] = set()

    def add(self, indices: Array, feeds: Mapping[str, Array], dense: Sequence[Array], tier: Sequence[Array]) -> None:
        for spec, dense_output, tier_output in zip(self.specs, dense, tier, strict=True):
            if dense_output.shape != tier_output.shape:
                raise FailedPrecondition(
                    f"output {spec.name!r}: dense answers with shape {dense_output.shape}, the tier with "
                    f"{tier_output.shape}; a pass changed what the model computes"
                )
            pair = (dense_output, tier_output)
            dense_rows, tier_rows = (
                own_answers(output, spec, dataset=self._dataset, indices=indices, feeds=feeds) for output in pair
            )
            for index, dense_row, tier_row in zip(indices.tolist(), dense_rows, tier_rows, strict=True):
                self._add_row(spec, index, dense_row, tier_row)
            if self._task is not Task.GENERIC and spec.name in self._scored:
                self._keep(spec.name, indices, dense_output, tier_output)

    def _add_row(self, spec: TensorSpec, index: int, dense: Array, tier: Array) -> None:
        if not is_finite(dense):
            raise FailedPrecondition(
                f"the dense graph itself gives NaN or infinity for sample {index} in output {spec.name!r}; "
                "no tier can be compared with that"
            )
        if is_finite(tier):
            self._energies[spec.name].add(dense, tier)
        else:
            self._broken.add(index)

    def _keep(self, name: str, indices: Array, dense: Array, tier: Array) -> None:
        for kept, output in ((self._dense, dense), (self._tier, tier)):
            if name not in kept:
                kept[name] = np.zeros((len(self._dataset), *output.shape[1:]), dtype=output.dtype)
            # A tier that gives NaN has the worst value of every metric in the end; until then they must compute.
            kept[name][indices] = np.nan_to_num(output)

    def comparison(self) -> Comparison:
        dense_quality = self._task_metrics(self._dense)
        agreement = {"sqnr_db": min(energies.sqnr_db for energies in self._energies.values())}
        if self._task is Task.CLASSIFICATION:
            agreement["top1_agreement"] = self._worst_over_outputs(top1_agreement)
        elif self._task is Task.EMBEDDING:
            agreement["cosine"] = self._worst_over_outputs(cosine)
            if len(self._dataset) >= _FEWEST_FOR_NEIGHBOURS:
                agreement["nearest_neighbour_agreement"] = self._worst_over_outputs(nearest_neighbour_agreement)
        else:
            agreement["cosine"] = min(self._energies[name].cosine for name in self._scored)
        quality = {self._task.headline_metric: agreement[self._task.headline_metric], **agreement}
        quality |= self._task_metrics(self._tier)
        if self._broken:
            quality = {name: WORST[name] for name in quality}
            quality[FINITE_FRACTION] = 1 - len(self._broken) / len(self._dataset)
        return Comparison(quality, dense_quality)

    def _worst_over_outputs(self, metric: Callable[[Array, Array], float]) -> float:
        return min(metric(self._dense[name], self._tier[name]) for name in self._scored)

    def _task_metrics(self, answers: Mapping[str, Array]) -> dict[str, float]:
        """Return the metrics that need people's labels or scores; none without them."""
        labels = self._dataset.labels
        if self._task is Task.CLASSIFICATION and labels is not None:
            rows = answers[self._scored[0]]
            if labels.max() >= rows.shape[1]:
                raise ConfigError(
                    [f"label: expected 0 to {rows.shape[1] - 1}, the model's classes, got {labels.max()}"]
                )
            return {"accuracy": accuracy(rows, labels)}
        if self._task is Task.EMBEDDING and len(self._dataset.pairs) >= _FEWEST_FOR_CORRELATION:
            rows = answers[self._scored[0]]
            first, second, scores = (np.array(column) for column in zip(*self._dataset.pairs, strict=True))
            nearness = row_cosines(rows[first], rows[second])
            return {"pearson": pearson(nearness, scores), "spearman": spearman(nearness, scores)}
        return {}
