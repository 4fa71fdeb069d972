"""One report in the making: each group narrowed, each layer quantized, compared with dense and timed."""

import math
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.environment import environment
from serveprune.artifacts.store import Artifact
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.answer_errors import AnswerErrors
from serveprune.compression.calibration import BuildSamples
from serveprune.compression.pass_sequence import SEED
from serveprune.compression.plan_report import CoupledAxis, layer_label
from serveprune.compression.pruning.dependency_graph import PruningGroup
from serveprune.compression.pruning.pruning import Pruning
from serveprune.compression.pruning.workload import workload_feeds
from serveprune.compression.quantization.layer_errors import ERROR_SAMPLES, LayerErrors
from serveprune.compression.quantization.layers import Layer
from serveprune.compression.quantization.preparation import prepare_for_quantization
from serveprune.compression.quantization.quantize import ignored_nodes, needs_reduced_range
from serveprune.compression.quantization.quantizer import Quantizer
from serveprune.compression.quantization.scheme import Scheme, multiplications
from serveprune.compression.sensitivity.group_changes import GroupChanges, Narrowing
from serveprune.compression.sensitivity.layer_changes import LayerChanges
from serveprune.compression.sensitivity.quality import QualityMeter, default_samples, spread
from serveprune.compression.sensitivity.report import Change, SensitivityReport
from serveprune.compression.sensitivity.timing import Gain, PieceTimer
from serveprune.config.profile import QuantizeOptions
from serveprune.config.pruning import PruneOptions, WorkloadOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.task import Task, infer_task
from serveprune.graph.footprint import graph_record
from serveprune.graph.onnx_file import read_header

_STUDIED = 0.15


class Measurement:
    """One report in the making."""

    def __init__(
        self,
        dense: Artifact,
        request: BuildRequest,
        *,
        samples: BuildSamples,
        calibration: Dataset,
        most_samples: int | None,
        workspace: Path,
        cache: Path,
        threads: int,
        threads_of_serving: int,
        on_progress: Callable[[str, float, str], None],
    ) -> None:
        """Choose the batch whose latency is meant.

        Args:
            dense: The imported graph.
            request: The model, and the profile that says how to change it.
            samples: Of the model.
            calibration: Their part to learn from.
            most_samples: Most held-out samples to look at; ``None`` leaves it to the size of the model.
            workspace: For graphs that lie between.
            cache: For what passes can use again.
            threads: Compute threads.
            threads_of_serving: Threads of one batch in serving.
            on_progress: Takes the stage, the fraction done, and where in the stage.
        """
        self._dense = dense
        self._request = request
        self._samples = samples
        self._calibration = calibration
        self._most_samples = most_samples
        self._workspace = workspace
        self._cache = cache
        self._threads = threads
        self._threads_of_serving = threads_of_serving
        self._progress = on_progress
        self._prune, self._quantize = asked_steps(request)
        workload = WorkloadOptions() if self._prune is None else self._prune.workload
        self._feeds = workload_feeds(calibration, workload)
        self._batch_size = max(len(array) for array in self._feeds.values() if array.ndim)
        self._timer = PieceTimer(self._batch_size, threads_of_serving, workspace)
        self._warnings: list[str] = []
        self._left_out: list[str] = []
        self._scheme: Scheme | None = None

    def report(self) -> SensitivityReport:
        """Measure everything.

        Raises:
            InvalidArgument: The graph is quantized, or there is nothing to change.
        """
        model = self._request.model
        held_out = self._samples.evaluation
        work = multiplications(read_header(self._dense.graph))
        total = work.convolution + work.matrix + work.recurrent
        few = spread(held_out, most=self._most_samples or default_samples(total), seed=SEED)
        with closing(OnnxRuntimeBackend().load(self._dense.graph, threads=self._threads)) as session:
            task = infer_task(model, session.outputs, labelled=held_out.labels is not None)
            meter = QualityMeter(
                session, samples=few, task=task, task_is_told=model.task is not None, threads=self._threads
            )
            self._progress("studying the graph", 0.0, "")
            groups, layers = self._groups(task), self._layers()
            self._progress("studying the graph", _STUDIED, "")
            changes = self._changes(groups, layers, meter)
        return SensitivityReport(
            model=self._request.model_name,
            metric=task.headline_metric,
            evaluation_set=self._samples.evaluation_set,
            evaluation_samples=len(few),
            held_out_samples=len(held_out),
            calibration_samples=len(self._calibration),
            error_samples=min(ERROR_SAMPLES, len(self._calibration)),
            batch_size=self._batch_size,
            length=self._length(),
            threads=self._threads_of_serving,
            scheme=self._scheme,
            dense_ms=self._timer.milliseconds(self._dense.graph, self._feeds),
            dense_bytes=graph_record(self._dense.graph).bytes,
            changes=tuple(changes),
            left_out=tuple(self._left_out),
            warnings=tuple(self._warnings),
            measured=datetime.now(UTC).isoformat(timespec="seconds"),
        ).sorted()

    def _length(self) -> int | None:
        return next((self._feeds[name].shape[1] for name in self._calibration.padding if name in self._feeds), None)

    def _folder(self, name: str) -> Path:
        folder = self._workspace / name
        folder.mkdir()
        return folder

    def _groups(self, task: Task) -> GroupChanges | None:
        if self._prune is None:
            return None
        folder = self._folder("prune")
        try:
            pruning = Pruning(
                self._dense.graph,
                self._prune,
                samples=self._calibration,
                workspace=folder,
                threads=self._threads,
                serving_threads=self._threads_of_serving,
                cache=self._cache,
                seed=SEED,
                task=task,
                model_name=self._request.model_name,
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"{error.message} (--profile int8 looks at int8 alone)") from error
        changes = GroupChanges(pruning, self._prune, samples=self._calibration, workspace=folder, threads=self._threads)
        self._warnings += pruning.warnings
        whole = [(group, pruning.scope.why_left_out(group)) for group in pruning.graph.groups]
        self._left_out += [f"{_label(group)}: {reason}" for group, reason in whole if reason is not None]
        narrowed = {narrowing.group.name for narrowing in changes.narrowings}
        self._left_out += [
            f"{_label(group)}: its {group.width} {group.kind} are too few for round_to {self._prune.round_to}"
            for group, reason in whole
            if reason is None and group.name not in narrowed
        ]
        return changes

    def _layers(self) -> LayerChanges | None:
        if self._quantize is None:
            return None
        folder = self._folder("int8")
        prepared = folder / "prepared.onnx"
        model = prepare_for_quantization(self._dense.graph, output=prepared, threads=self._threads)
        ignored = ignored_nodes(model, self._quantize.ignore)
        counted, wanted = multiplications(model).scheme, self._quantize.scheme
        if wanted == "nncf":
            raise InvalidArgument(
                "sensitivity: expected scheme auto, dynamic or static, got nncf; it quantizes as a whole"
            )
        self._scheme = scheme = counted if wanted == "auto" else wanted
        reduce_range = needs_reduced_range(environment()["cpu"])
        quantizer = Quantizer(
            prepared,
            model,
            scheme=scheme,
            reduce_range=reduce_range,
            calibration=self._calibration,
            workspace=folder,
            threads=self._threads,
        )
        self._layer_errors = LayerErrors(
            self._cache,
            graph=self._dense.graph,
            scheme=scheme,
            reduce_range=reduce_range,
            calibration=self._calibration,
        )
        changes = LayerChanges(quantizer, prepared=prepared, feeds=self._feeds, workspace=folder)
        self._left_out += [f"{layer.label}: int8: ignored" for layer in changes.layers if layer.node in ignored]
        changes.layers = tuple(layer for layer in changes.layers if layer.node not in ignored)
        if not changes.layers:
            self._left_out.append(f"int8: scheme {self._scheme} finds no layer with constant weights")
        return changes

    def _changes(self, groups: GroupChanges | None, layers: LayerChanges | None, meter: QualityMeter) -> list[Change]:
        errors = AnswerErrors(self._dense.graph, samples=self._calibration.head(ERROR_SAMPLES), threads=self._threads)
        steps: list[tuple[str, Callable[[], Change]]] = []
        if groups is not None:
            steps += [
                (_label(each.group), partial(self._narrowed, groups, each, meter, errors)) for each in groups.narrowings
            ]
        if layers is not None:
            steps += [(each.label, partial(self._quantized, layers, each, meter, errors)) for each in layers.layers]
        if not steps:
            raise InvalidArgument(f"nothing in this graph can be changed: {'; '.join(self._left_out)}")
        changes = []
        for index, (label, step) in enumerate(steps):
            done = _STUDIED + (1 - _STUDIED) * index / len(steps)
            self._progress("measuring", done, f"{index + 1} of {len(steps)}: {label}")
            changes.append(step())
        if layers is not None:
            # Of layers that are ignored here an earlier call may know.
            known = self._layer_errors.read() or {}
            self._layer_errors.write(known | {each.name: each.error for each in changes if each.change == "int8"})
        return changes

    def _narrowed(
        self, groups: GroupChanges, narrowing: Narrowing, meter: QualityMeter, errors: AnswerErrors
    ) -> Change:
        path = self._workspace / "narrowed.onnx"
        groups.write(narrowing, path)
        group = narrowing.group
        change = Change(
            layer=_label(group),
            name=group.name,
            change="prune",
            kind=group.kind,
            strength=1 - narrowing.after / group.width,
            before=group.width,
            after=narrowing.after,
            **self._seen(path, meter, errors),
            **_times(groups.gain(narrowing, self._timer)),
        )
        path.unlink()
        return change

    def _quantized(self, layers: LayerChanges, layer: Layer, meter: QualityMeter, errors: AnswerErrors) -> Change:
        path = self._workspace / "quantized.onnx"
        layers.write(layer, path)
        change = Change(
            layer=layer.label,
            name=layer.node,
            change="int8",
            kind=layer.operator,
            strength=1.0,
            before=None,
            after=None,
            **self._seen(path, meter, errors),
            **_times(layers.gain(layer, self._timer)),
        )
        path.unlink()
        return change

    def _seen(self, graph: Path, meter: QualityMeter, errors: AnswerErrors) -> dict[str, Any]:
        """Return what a changed graph answers, and how large it is."""
        comparison, error = meter.of(graph), errors.of(graph)
        quality = dict(comparison.quality)
        return {
            # A graph that gives NaN has lost everything, and JSON knows no NaN.
            "error": error if math.isfinite(error) else 1.0,
            "quality": quality,
            "quality_lost": max(1 - quality[comparison.task.headline_metric], 0.0),
            "saved_bytes": self._dense.manifest.graph.bytes - graph_record(graph).bytes,
        }


def asked_steps(request: BuildRequest) -> tuple[PruneOptions | None, QuantizeOptions | None]:
    """Return the options of the profile's first `prune` and of its first `quantize`.

    Raises:
        InvalidArgument: It has neither.
    """
    steps = request.profile.passes if request.profile is not None else ()
    prune = next((step.prune for step in steps if isinstance(step.prune, PruneOptions)), None)
    quantize = next((step.quantize for step in steps if step.quantize is not None), None)
    if prune is None and quantize is None:
        names = ", ".join(step.name for step in steps) or "none"
        raise InvalidArgument(f"expected a profile with a `prune` or a `quantize` pass; its passes are: {names}")
    return prune, quantize


def _times(gain: Gain) -> dict[str, Any]:
    return {
        "saved_ms": gain.median_ms,
        "saved_ms_low": gain.low_ms,
        "saved_ms_high": gain.high_ms,
        "rounds": gain.rounds,
    }


def _label(group: PruningGroup) -> str:
    """Return the name of a group's layer, as `serveprune plan` shows it."""
    return layer_label(
        group.name,
        [
            CoupledAxis(weight=piece.name, axis=piece.axis, positions_per_unit=piece.positions.shape[1])
            for piece in group.slices
        ],
    )
