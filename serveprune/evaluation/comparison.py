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
from serveprune.evaluation.task import Task, is_row_of_scores, numeric_outputs, scored_outputs
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_FEWEST_FOR_NEIGHBOURS = 3
_FEWEST_FOR_CORRELATION = 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every metric by name, of the tier, and the task's own metrics of dense; ``task`` is what they were chosen for."""

    task: Task

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
    task_is_told: bool = False,
) -> Comparison:
    """Run both graphs over the same batches and compare their answers.

    Metrics by task:

    - classification: ``top1_agreement``; ``accuracy`` where the dataset has labels.
    - embedding: ``cosine`` (mean over samples); ``nearest_neighbour_agreement`` from 3 samples on; ``pearson``
      and ``spearman`` of the pairs' cosines with the people's scores, where the dataset has pairs.
    - generic: ``cosine`` of all answers to all samples as one long vector, after dense's mean answer is taken off
      both (see `SignalEnergies.centred_cosine`); ``top1_agreement`` over the outputs ``(batch, width > 1)``, which
      may be classes for all that is known, unless somebody said that they are not (``task_is_told``).
    - always: ``sqnr_db``, over all numeric outputs.

    A classifier or encoder whose vectors differ in size from batch to batch (a score for each token) has no classes
    and no angle between samples: it is compared as generic. Of several outputs the worst counts; labels and scores
    belong to the first of `scored_outputs`. If the tier gives NaN or infinity for any sample, every metric has its
    worst value, and ``finite_fraction`` is recorded.

    Raises:
        FailedPrecondition: Dense itself gives NaN or infinity, so nothing can be compared with it.
        ConfigError: A label is not one of the classes.
    """
    answers = _Answers(task, dense.outputs, dataset, counts_top1=not task_is_told)
    names = [spec.name for spec in answers.specs]
    done = 0
    for indices, feeds in dataset.batches(batch_size):
        answers.add(indices, feeds, dense.run(feeds, outputs=names), tier.run(feeds, outputs=names))
        done += len(indices)
        on_progress(done / len(dataset))
    return answers.comparison()


class _Answers:
    """What both graphs answered: rows where the task scores rows, sums for everything."""

    def __init__(self, task: Task, outputs: Sequence[TensorSpec], dataset: Dataset, *, counts_top1: bool) -> None:
        self._task = task
        self._outputs = outputs
        self._dataset = dataset
        self._scored = [spec.name for spec in scored_outputs(task, outputs)]
        self.specs = numeric_outputs(outputs)
        if not self._scored:
            raise FailedPrecondition(f"no output can be scored as {task}: {', '.join(spec.name for spec in outputs)}")
        self._energies = {spec.name: SignalEnergies(width=_width(spec)) for spec in self.specs}
        self._same_top1 = {spec.name: 0 for spec in self.specs if counts_top1 and is_row_of_scores(spec)}
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
                self._keep(spec.name, indices, dense_rows, tier_rows)

    def _add_row(self, spec: TensorSpec, index: int, dense: Array, tier: Array) -> None:
        if not is_finite(dense):
            raise FailedPrecondition(
                f"the dense graph itself gives NaN or infinity for sample {index} in output {spec.name!r}; "
                "no tier can be compared with that"
            )
        if is_finite(tier):
            self._energies[spec.name].add(dense, tier)
            if spec.name in self._same_top1:
                self._same_top1[spec.name] += int(dense.argmax() == tier.argmax())
        else:
            self._broken.add(index)

    def _keep(self, name: str, indices: Array, dense: Sequence[Array], tier: Sequence[Array]) -> None:
        shapes = {row.shape for row in dense}
        if name in self._dense:
            shapes.add(self._dense[name].shape[1:])
        if len(shapes) > 1:
            self._compare_as_generic()
            return
        for kept, rows in ((self._dense, dense), (self._tier, tier)):
            if name not in kept:
                kept[name] = np.zeros((len(self._dataset), *rows[0].shape), dtype=rows[0].dtype)
            # A tier that gives NaN has the worst value of every metric in the end; until then they must compute.
            kept[name][indices] = np.nan_to_num(np.stack(rows))

    def _compare_as_generic(self) -> None:
        self._task = Task.GENERIC
        self._scored = [spec.name for spec in scored_outputs(Task.GENERIC, self._outputs)]
        self._dense.clear()
        self._tier.clear()

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
            agreement["cosine"] = min(self._energies[name].centred_cosine for name in self._scored)
            if self._same_top1:
                agreement["top1_agreement"] = min(self._same_top1.values()) / len(self._dataset)
        quality = {self._task.headline_metric: agreement[self._task.headline_metric], **agreement}
        quality |= self._task_metrics(self._tier)
        if self._broken:
            quality = {name: WORST[name] for name in quality}
            quality[FINITE_FRACTION] = 1 - len(self._broken) / len(self._dataset)
        return Comparison(self._task, quality, dense_quality)

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


def _width(spec: TensorSpec) -> int:
    """Return the size of an output's last axis; 1 where it is the batch or differs from run to run."""
    return 1 if len(spec.shape) < 2 or spec.shape[-1] in (DYNAMIC, 0) else spec.shape[-1]
