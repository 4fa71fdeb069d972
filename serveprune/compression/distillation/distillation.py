"""A student, its teacher, and a training between them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.artifacts.digest import sha256_file, sha256_json
from serveprune.artifacts.environment import environment
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.distillation.objective import HeldOutQuality, Objective
from serveprune.compression.distillation.rounding import StaticRounding
from serveprune.compression.distillation.teacher import TeacherAnswers
from serveprune.compression.distillation.watched_values import (
    Meaning,
    WatchedValue,
    watched_intermediates,
    watched_outputs,
)
from serveprune.compression.held_out import FEWEST_SAMPLES, parted
from serveprune.compression.kept_channels import read_kept_channels
from serveprune.compression.learning.batches import ShuffledBatches
from serveprune.compression.learning.history import Ending, History
from serveprune.compression.learning.training import Training
from serveprune.compression.passes import PassContext
from serveprune.compression.pruning.observation import observe_sizes
from serveprune.compression.pruning.preparation import prepare
from serveprune.config.distillation import DistillOptions
from serveprune.errors import BuildFailed, ConfigError, InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.graph.executor.graph_module import GraphModule
from serveprune.graph.executor.operator import Rounding
from serveprune.graph.node import label, operator
from serveprune.graph.onnx_file import write_graph
from serveprune.graph.quantized import quantized_node

_SPARSE_RATIO = 0.3
_MATRIX_RANK = 2
_TEACHING = 0.1
"""Part of the pass, for its progress, in which the teacher answers."""


class Distillation:
    """Trains the weights of one graph until it answers like the dense one."""

    def __init__(self, graph: Path, options: DistillOptions, *, context: PassContext) -> None:
        """Read the graph and choose what is compared; nothing is learned yet.

        Args:
            graph: The student; not changed.
            options: The profile's.
            context: Has the dense graph, and samples.

        Raises:
            InvalidArgument: There are no samples or no labels where they are needed, the graph is quantized or has an
                operator that the executor lacks, or a name in the options names nothing.
        """
        self._options = options
        self._context = context
        self._samples, self._held_out = _parted(context.calibration, options)
        self._require_labels()
        assert context.dense is not None
        self._dense = context.dense
        self._recipe = {"graph": sha256_file(graph), "dense": sha256_file(self._dense)}
        _require_float(graph)
        self._model = prepare(graph, output=context.workspace / "prepared.onnx")
        self._roundings: dict[str, Rounding] = {}
        if options.quantization_aware:
            self._learn_rounding()
        self._module = GraphModule(self._model, name=context.model_name)
        self._frozen = self._freeze()
        self._masks = _masks(self._module.weights)
        padded = bool(self._samples.padding)
        with closing(OnnxRuntimeBackend().load(self._dense, threads=context.threads)) as dense:
            self._outputs = watched_outputs(context.task, dense.outputs, padded=padded)
            self._batch_size = rows_per_run(dense.inputs, wanted=options.batch_size)
        self._intermediates = self._watched_intermediates(padded=padded)
        self.history: History | None = None

    def run(self) -> None:
        """Learn; the module has the best weights in the end.

        Raises:
            InvalidArgument: The time is too short for one epoch, or dense's values do not fit.
            BuildFailed: Nothing was better than the weights there were.
        """
        progress, note = self._context.progress, self._context.note
        note("the dense graph answers")
        teacher = self._teacher(self._samples, (*self._outputs, *self._intermediates), progress, share=0.9)
        judge = self._teacher(self._held_out, self._outputs, progress, share=0.1)
        self._require_classes(teacher)
        self._quality = HeldOutQuality(self._answer, self._options, teacher=judge, samples=self._held_out)

        def on_progress(fraction: float, words: str) -> None:
            note(words)
            progress(_TEACHING + (1 - _TEACHING) * fraction)

        self._training = Training(
            self._module,
            self._options,
            batches=ShuffledBatches(self._samples, batch_size=self._batch_size, seed=self._options.seed),
            loss=Objective(self._answer, self._options, teacher=teacher, samples=self._samples),
            validate=self._quality,
            masks=self._masks,
            weights=self._module.weights,
            frozen_statistics=self._options.batch_norm == "frozen",
            checkpoint=self._checkpoint(),
            on_progress=on_progress,
        )
        with _threads(self._context.threads):
            self.history = self._training.run()
        if not self.history.improved:
            self._training.forget()
            raise BuildFailed(self._nothing_gained(self.history))

    def write(self, output: Path) -> None:
        """Write the graph with what was learned, and forget how to go on."""
        self._module.write_back(self._model)
        write_graph(self._model, output)
        self._training.forget()

    def findings(self) -> dict[str, Any]:
        """Return what was done, ready for JSON."""
        assert self.history is not None
        return {
            "quality_metric": self._quality.name,
            **self.history.findings(),
            "samples": {"learned_from": len(self._samples), "held_out": len(self._held_out)},
            "outputs": [value.name for value in self._outputs],
            "intermediate": [value.name for value in self._intermediates],
            "weights": {
                "trained": len(self._module.weights) - len(self._frozen),
                "left_alone": sorted(self._frozen),
                "zeros_kept": sorted(self._masks),
            },
            "rounded": len(self._roundings),
            "warnings": list(self._warnings(self.history)),
        }

    def _answer(self, feeds: Mapping[str, Tensor], values: tuple[str, ...]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = self._module(feeds, values=values, roundings=self._roundings)
        return made

    def _learn_rounding(self) -> None:
        context = self._context
        rounding = StaticRounding(
            context.workspace / "prepared.onnx",
            samples=self._samples,
            cpu=context.cpu,
            workspace=context.workspace,
            threads=context.threads,
            progress=lambda fraction: None,
        )
        self._model, self._roundings = rounding.model, rounding.functions

    def _freeze(self) -> set[str]:
        """Take gradients from the weights that stay as they are; return their names."""
        weights = self._module.weights
        for pattern in self._options.ignore:
            if not any(fnmatchcase(name, pattern) for name in weights):
                some = ", ".join(weights)
                raise InvalidArgument(
                    f"distill: the ignore pattern {pattern!r} matches no weight of the graph; weights are: {some[:500]}"
                )
        frozen = {name for name in weights if any(fnmatchcase(name, pattern) for pattern in self._options.ignore)}
        for name in frozen:
            weights[name].requires_grad_(False)
        if len(frozen) == len(weights):
            raise InvalidArgument("distill: expected weights to train, got none: the ignore patterns match all of them")
        return frozen

    def _watched_intermediates(self, *, padded: bool) -> tuple[WatchedValue, ...]:
        if not self._options.losses.intermediate:
            return ()
        workspace = self._context.workspace
        return watched_intermediates(
            self._options.intermediate,
            student=self._model,
            teacher=ir.load(self._dense),
            observation=observe_sizes(self._model, workspace=workspace, sample=self._samples.samples[0]),
            padded=padded,
        )

    def _teacher(
        self, samples: Dataset, watched: tuple[WatchedValue, ...], progress: Callable[[float], None], *, share: float
    ) -> TeacherAnswers:
        begun = 0.0 if share > 1 / 2 else _TEACHING * (1 - share)
        return TeacherAnswers(
            self._dense,
            watched,
            dataset=samples,
            workspace=self._context.workspace,
            threads=self._context.threads,
            progress=lambda fraction: progress(begun + _TEACHING * share * fraction),
        )

    def _require_labels(self) -> None:
        if self._options.losses.labels and self._samples.labels is None:
            raise InvalidArgument(
                "distill: losses.labels wants a calibration set with labels, and this one has none; add labels "
                "(`label` in the .npz file, or on every line of the .jsonl file), or set losses.labels to 0"
            )

    def _require_classes(self, teacher: TeacherAnswers) -> None:
        """Refuse labels that are none of the classes."""
        labels, value = self._samples.labels, self._outputs[0]
        if not self._options.losses.labels or labels is None:
            return
        if value.meaning is not Meaning.CLASSES:
            raise InvalidArgument(
                "distill: losses.labels wants a classifier, and this model's answers are not scores of classes; set "
                "models.<name>.task: classification if they are, or losses.labels: 0"
            )
        classes = teacher.batch(np.zeros(1, np.int64))[value.name].shape[-1]
        if labels.min() < 0 or labels.max() >= classes:
            raise InvalidArgument(
                f"distill: expected labels from 0 to {classes - 1}, the model's classes, got {labels.min()} to "
                f"{labels.max()}; correct the calibration set"
            )

    def _checkpoint(self) -> Path | None:
        context = self._context
        if context.cache is None:
            return None
        recipe = {
            **self._recipe,
            "pass": "distill",
            "revision": self._options.revision,
            "options": self._options.model_dump(mode="json"),
            "task": str(context.task),
            "threads": context.threads,
            "samples": [digest.hex() for digest in self._samples.digests()],
            "labels": None if self._samples.labels is None else self._samples.labels.tolist(),
            "environment": environment(),
        }
        return context.cache / f"{sha256_json(recipe)}.checkpoint"

    def _nothing_gained(self, history: History) -> str:
        reached = max((row.quality for row in history.rows[1:] if row.quality == row.quality), default=float("nan"))
        diverged = "the loss ran away; lower learning_rate" if history.ending is Ending.DIVERGED else ""
        advice = diverged or "give it more time or samples, lower learning_rate, or leave the pass out"
        return (
            f"distill: the pass changed nothing: after {history.steps} steps the held-out {self._quality.name} was at "
            f"best {reached:.4f}, no better than the {history.quality_before:.4f} it began with; {advice}"
        )

    def _warnings(self, history: History) -> Iterator[str]:
        if history.ending is Ending.DIVERGED:
            yield (
                f"distill: the loss ran away in step {history.steps}; the weights of step {history.best_step} were "
                "kept: lower learning_rate"
            )
        count = len(self._samples) + len(self._held_out)
        if count < FEWEST_SAMPLES and read_kept_channels(self._model):
            yield (
                f"distill: `prune` learned from all {count} samples, those that judged the training too, because they "
                f"are fewer than {FEWEST_SAMPLES}; what was gained is more than it seemed: give more samples"
            )
        if history.epochs < 1:
            yield f"distill: only {int(100 * history.epochs)} % of the samples were learned from; give a larger budget"


def _parted(calibration: Dataset | None, options: DistillOptions) -> tuple[Dataset, Dataset]:
    """Return what is learned from, and what judges."""
    if calibration is None:
        raise InvalidArgument(
            "distill: expected unlabelled samples to learn from, got none; set models.<name>.calibration.file (for the "
            "command line: --calibration)"
        )
    try:
        return parted(calibration, ratio=options.held_out)
    except ConfigError as error:
        raise InvalidArgument(f"distill: the calibration set is too small: {error.message}") from error


def _require_float(graph: Path) -> None:
    quantized = quantized_node(ir.load(graph))
    if quantized is not None:
        raise InvalidArgument(
            f"distill: no gradients through an integer or quantized graph ({operator(quantized)}, {label(quantized)}); "
            "start from the float model, and put `distill` before `quantize`"
        )


def _masks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which numbers of sparse matrices and filters may change: those that are not zero."""
    masks = {}
    for name, weight in weights.items():
        kept = (weight.detach() != 0).to(weight.dtype)
        if weight.dim() >= _MATRIX_RANK and float(kept.mean()) <= 1 - _SPARSE_RATIO:
            masks[name] = kept
    return masks


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
