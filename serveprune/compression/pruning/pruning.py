"""One model on its way to a target: study, plan, surgery, repair, and the checks between."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from serveprune.artifacts.digest import sha256_file
from serveprune.artifacts.environment import environment
from serveprune.artifacts.manifest import LatencyRecord
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.kept_channels import write_kept_channels
from serveprune.compression.pruning.allocation import Unreachable
from serveprune.compression.pruning.cost import CostModel, Widths
from serveprune.compression.pruning.coupled_allocation import (
    Candidates,
    Movable,
    RemovableBlock,
    WidthAllocation,
)
from serveprune.compression.pruning.dependency_graph import DependencyGraph, PruningGroup
from serveprune.compression.pruning.equivalence import check_surgery
from serveprune.compression.pruning.footprint_cost import footprint_cost
from serveprune.compression.pruning.group_axes import GroupAxes
from serveprune.compression.pruning.importance import (
    Importance,
    MagnitudeImportance,
    RandomImportance,
    ReconstructionImportance,
)
from serveprune.compression.pruning.latency_measurement import measure_latency_table
from serveprune.compression.pruning.latency_table import LatencyTable
from serveprune.compression.pruning.observation import observe, observe_sizes
from serveprune.compression.pruning.plan import GroupPlan, Plan, describe
from serveprune.compression.pruning.preparation import prepare
from serveprune.compression.pruning.remaining_channels import remaining_channels
from serveprune.compression.pruning.repair import reestimate_batch_norms, refit
from serveprune.compression.pruning.repair_stages import kept_outputs, repair_stages
from serveprune.compression.pruning.scope import PruningScope
from serveprune.compression.pruning.stopwatch import Stopwatch
from serveprune.compression.pruning.study import GroupStudy, Study, StudyCache, study_model
from serveprune.compression.pruning.surgery import remove_blocks, remove_units
from serveprune.compression.pruning.target import allocate_target, distance, misses
from serveprune.compression.pruning.workload import workload_feeds
from serveprune.config.pruning import PruneOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.latency import latency_clock, measure_latency
from serveprune.evaluation.rows_per_run import rows_per_run
from serveprune.evaluation.task import Task
from serveprune.graph.footprint import graph_record
from serveprune.graph.onnx_file import write_graph
from serveprune.oip.tensor import Array

_ENOUGH_ROWS = 2.0
"""Rows per input below which least squares fits the samples rather than the model."""

_TIMING_ROUNDS = 25
_TIMING_SECONDS = 12.0

_COUNTED = {"parameters_ratio": "parameters", "bytes_ratio": "bytes"}


class Pruning:
    """Prunes one graph; `plan` changes nothing, `carry_out` writes the result.

    Attributes:
        scope: What of ``graph`` may go.
    """

    def __init__(
        self,
        graph: Path,
        options: PruneOptions,
        *,
        samples: Dataset,
        workspace: Path,
        threads: int,
        serving_threads: int,
        cache: Path | None,
        seed: int,
        task: Task = Task.GENERIC,
        model_name: str = "model",
    ) -> None:
        """Walk the graph and find what can go.

        Args:
            graph: ONNX file; not changed.
            options: The profile's.
            samples: Unlabelled inputs.
            workspace: Folder for what lies between.
            threads: Compute threads of the pass.
            serving_threads: Threads of one batch in serving, with which latency is measured.
            cache: Folder for what other tiers and later builds can use again; ``None`` keeps nothing.
            seed: Of random importance, and of what gradients are drawn for.
            task: What the answers mean, which gradients ask.
            model_name: For messages.

        Raises:
            InvalidArgument: The graph is quantized already, or has nothing to prune.
            FailedPrecondition: Its batch axis is fixed above 1.
        """
        self._options = options
        self._workspace = workspace
        self._threads = threads
        self._serving_threads = serving_threads
        self._cache = cache
        self._seed = seed
        self._task = task
        self._model_name = model_name
        self._prepared = workspace / "prepared.onnx"
        self._dense = prepare(graph, output=self._prepared)
        inputs = [record.spec for record in graph_record(self._prepared).inputs]
        self._samples = samples = replace(samples, most_rows=1 if rows_per_run(inputs, wanted=2) == 1 else None)
        attention: Literal["heads", "head_dims"] = "head_dims" if options.structure == "head_dims" else "heads"
        observation = observe_sizes(self._dense, workspace=workspace, sample=samples.samples[0])
        self._graph = DependencyGraph(self._dense, observation, attention=attention)
        self.scope = PruningScope(self._graph, options, model=self._dense)
        self._feeds = workload_feeds(samples, options.workload)

    @property
    def graph(self) -> DependencyGraph:
        """What couples with what, and what is pinned and why."""
        return self._graph

    @property
    def prepared(self) -> Path:
        """The graph that ``graph`` was made from."""
        return self._prepared

    @property
    def feeds(self) -> Mapping[str, Array]:
        """The batch whose latency is meant."""
        return self._feeds

    def study(self) -> Study:
        """Return what each shrinkable group can lose, in their order; from the cache if it is there."""
        self._study = self._studied()
        return self._study

    @property
    def block_errors(self) -> Mapping[str, float]:
        """Share of the answers' energy that is lost without each block; known once `plan` has run."""
        return self._study.block_errors

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell people about the samples; known once `plan` has run."""
        if self._study.rows_per_input >= _ENOUGH_ROWS:
            return ()
        warning = (
            f"the {len(self._samples)} samples give one layer only {self._study.rows_per_input:.2g} rows per input, "
            f"expected at least {_ENOUGH_ROWS:g}: the fit leans on the old weights; give more samples"
        )
        return (warning,)

    @property
    def batch_size(self) -> int:
        """Rows of the batch whose latency is meant."""
        return max(len(array) for array in self._feeds.values() if array.ndim)

    def plan(self, *, progress: Callable[[float], None] = lambda fraction: None) -> Plan:
        """Choose how many units each group keeps.

        Raises:
            InvalidArgument: The target cannot be reached, and the message says how far one can get; or it would
                remove nothing.
        """
        self.study()
        progress(0.6)
        self._cost = self._cost_model()
        progress(0.95)
        plan = self._plan(self._allocate(self._cost), self._cost)
        if not plan.removed_blocks and all(group.after == group.before for group in plan.groups):
            raise InvalidArgument(self._nothing_goes())
        return plan

    def _nothing_goes(self) -> str:
        target = self._options.target
        asked = f"prune: {target.kind} {target.value:g} removes nothing"
        if target.kind == "ratio" and self._options.structure == "blocks":
            return f"{asked}: a ratio narrows layers, and structure: blocks narrows none; give another target"
        return f"{asked}: widths go down in steps of round_to ({self._options.round_to}); lower it, or ask for less"

    def carry_out(
        self, plan: Plan, *, output: Path, progress: Callable[[float], None] = lambda fraction: None
    ) -> dict[str, Any]:
        """Cut, check, repair and write; return what was done, ready for JSON.

        A latency target that the cut model misses by more than 5 %, and by more than its timing is uncertain, is
        allocated once more; of both the one nearer to the target is taken.

        Raises:
            BuildFailed: The smaller graph does not compute what the masked one does.
        """
        model = self._cut(plan)
        report: dict[str, Any] = {}
        if isinstance(self._cost, LatencyTable):
            plan, model, report = self._corrected(plan, model, cost=self._cost)
        progress(0.15)
        report["masked_equivalence"] = check_surgery(
            self._prepared,
            self._graph,
            plan.removed,
            [self._feeds],
            workspace=self._workspace,
            blocks=plan.removed_blocks,
        )
        progress(0.2)
        self._repair(model, plan, progress=lambda done: progress(0.2 + 0.7 * done))
        write_kept_channels(model, remaining_channels(self._dense, self._graph, plan.removed))
        # Constants that lost their readers: biases that the fit replaced, say.
        passes.RemoveUnusedNodesPass()(model)
        write_graph(model, output)
        return report | describe(plan)

    def _corrected(self, plan: Plan, model: ir.Model, *, cost: LatencyTable) -> tuple[Plan, ir.Model, dict[str, Any]]:
        """Return the plan that comes nearest to the target as measured, its model, and what was measured."""
        latency, tries = self._latency(model), 1
        target = self._options.target
        if misses(latency, target=target):
            # The table knows the dense model by its own timing, so only the ratio is taken over.
            corrected = cost.corrected(self._widths(plan), measured_ms=latency.ratio * cost.dense_ms)
            other = self._plan(self._allocate(corrected), corrected)
            other_model, tries = self._cut(other), 2
            other_latency = self._latency(other_model)
            if distance(other_latency, target=target) < distance(latency, target=target):
                plan, model, latency = other, other_model, other_latency
        measured = {"dense": latency.dense_ms, "pruned": latency.dense_ms * latency.ratio}
        return plan, model, {"measured_ms": measured, "allocations": tries}

    def _cut(self, plan: Plan) -> ir.Model:
        model = ir.load(self._prepared)
        remove_blocks(model, self._graph, plan.removed_blocks)
        remove_units(model, self._graph, plan.removed)
        return model

    def _repair(self, model: ir.Model, plan: Plan, *, progress: Callable[[float], None]) -> None:
        repair = self._options.repair
        kept = kept_outputs(plan.removed, dense=self._dense, graph=self._graph)
        if "least_squares" in repair or "variance" in repair:
            refit(
                model,
                repair_stages(plan, dense=self._dense, graph=self._graph),
                dense=self._dense,
                kept=kept,
                steps=repair,
                samples=self._samples,
                workspace=self._workspace,
                threads=self._threads,
                progress=progress,
            )
        if "batch_norm" in repair:
            reestimate_batch_norms(
                model,
                dense=self._dense,
                kept=kept,
                samples=self._samples,
                workspace=self._workspace,
                threads=self._threads,
            )

    def _studied(self) -> Study:
        groups = [self._graph.groups[index] for index in self.scope.indices]
        cache = StudyCache(
            self._cache,
            recipe={
                "revision": self._options.revision,
                "graph": sha256_file(self._prepared),
                "importance": self._options.importance,
                "structure": self._options.structure,
                "groups": [group.name for group in groups],
                "seed": self._seed,
                "blocks": sorted(self.scope.blocks),
                "samples": [digest.hex() for digest in self._samples.digests()],
                "environment": environment(),
            }
            | self._loss_recipe(),
        )
        study = cache.read()
        if study is None:
            study = study_model(
                self._prepared,
                self._dense,
                self._graph,
                groups,
                list(self.scope.blocks),
                self._importance(groups),
                samples=self._samples,
                workspace=self._workspace,
                threads=self._threads,
            )
            cache.write(study)
        return study

    def _loss_recipe(self) -> dict[str, object]:
        """Return what gradients depend on besides what every study does."""
        if not self._options.learns_by_gradients:
            return {}
        labels = self._samples.labels
        return {
            "loss": self._options.loss,
            "task": self._task.value,
            "labels": None if labels is None else labels.tolist(),
        }

    def _importance(self, groups: Sequence[PruningGroup]) -> Importance:
        match self._options.importance:
            case "taylor" | "fisher" as method:
                # Torch, which starts slowly, is needed here only.
                from serveprune.compression.pruning.gradient_importance import GradientImportance
                from serveprune.compression.pruning.gradients import GradientSource

                source = GradientSource(
                    samples=self._samples,
                    task=self._task,
                    outputs=[record.spec for record in graph_record(self._prepared).outputs],
                    loss=self._options.loss,
                    name=self._model_name,
                    seed=self._seed,
                    threads=self._threads,
                )
                return GradientImportance(method, model=self._dense, graph=self._graph, groups=groups, source=source)
            case "reconstruction":
                return ReconstructionImportance()
            case "magnitude":
                return MagnitudeImportance(norm=2)
            case "magnitude_l1":
                return MagnitudeImportance(norm=1)
            case _:
                return RandomImportance(seed=self._seed)

    def _cost_model(self) -> CostModel:
        kind = self._options.target.kind
        if kind in ("speedup", "latency_ms"):
            stopwatch = Stopwatch(
                OnnxRuntimeBackend(), threads=self._serving_threads, workspace=self._workspace, cache=self._cache
            )
            return measure_latency_table(
                self._dense, self._graph, self.scope.candidate_widths(), feeds=self._feeds, stopwatch=stopwatch
            )
        footprint = {"flops_ratio": "flops", "parameters_ratio": "parameters", "bytes_ratio": "bytes"}.get(
            kind, "flops"
        )
        shapes = observe(self._dense, [self._feeds, self._feeds], workspace=self._workspace).first
        return footprint_cost(self._dense, GroupAxes(self._graph), shapes=shapes, kind=footprint)  # type: ignore[arg-type]

    def _allocate(self, cost: CostModel) -> WidthAllocation:
        try:
            return allocate_target(self._movables(), target=self._options.target, cost=cost)
        except InvalidArgument as error:
            kept = f"; kept whole: {self.scope.kept_whole()}" if isinstance(error, Unreachable) else ""
            raise InvalidArgument(f"prune: {error.message}{kept}") from error

    def _movables(self) -> list[Movable]:
        """Return the choices of the search: a width for every group, and whether each block stays."""
        widths = self.scope.candidate_widths()
        choices: dict[int, Candidates] = {}
        for index in self.scope.indices:
            group, study = self._graph.groups[index], self._study_of(index)
            errors = study.answer_errors[[group.width - width for width in widths[index]]]
            choices[index] = Candidates(index, np.array(widths[index]), errors)
        movables: list[Movable] = []
        for name, inside in self.scope.blocks.items():
            parts = tuple(choices.pop(index) for index in inside)
            movables.append(RemovableBlock(name, parts, self._study.block_errors[name]))
        return [*movables, *choices.values()]

    def _study_of(self, index: int) -> GroupStudy:
        return self._study.groups[self.scope.indices.index(index)]

    def _plan(self, allocation: WidthAllocation, cost: CostModel) -> Plan:
        plans = []
        dense_cost = cost.total(cost.dense)
        for index in self.scope.indices:
            group, study = self._graph.groups[index], self._study_of(index)
            after = int(allocation.widths[index])
            going = study.order.units[: group.width - after]
            saved = None
            if isinstance(cost, LatencyTable):
                saved = float(cost.dense_ms - cost.milliseconds_by_width(index, candidates=[after])[0])
            plans.append(
                GroupPlan(
                    name=group.name,
                    kind=group.kind,
                    before=group.width,
                    after=after,
                    error=float(study.answer_errors[group.width - after]),
                    saved_ms=saved,
                    removed=tuple(int(unit) for unit in group.units[going]),
                )
            )
        if isinstance(cost, LatencyTable):
            predicted = {"unit": "ms", "before": cost.dense_ms, "after": cost.predict(allocation.widths)}
        else:
            predicted = {
                "unit": _COUNTED.get(self._options.target.kind, "multiplications"),
                "before": dense_cost,
                "after": cost.total(allocation.widths),
            }
        return Plan(
            tuple(plans),
            tuple(sorted(allocation.removed_blocks)),
            dict(self._graph.why_pinned()),
            self._graph.unknown_operators,
            predicted,
        )

    def _widths(self, plan: Plan) -> Widths:
        widths = self._cost.dense.copy()
        for index, group in zip(self.scope.indices, plan.groups, strict=True):
            widths[index] = group.after
        return widths

    def _latency(self, pruned: ir.Model) -> LatencyRecord:
        """Time one batch on the dense and on the cut graph in turns."""
        backend, path = OnnxRuntimeBackend(), self._workspace / "cut.onnx"
        write_graph(pruned, path)
        with (
            closing(backend.load(self._prepared, threads=self._serving_threads)) as dense,
            closing(backend.load(path, threads=self._serving_threads)) as small,
        ):
            return measure_latency(
                lambda: dense.run(self._feeds),
                lambda: small.run(self._feeds),
                batch_size=self._options.workload.batch_size,
                threads=self._serving_threads,
                rounds=_TIMING_ROUNDS,
                budget_seconds=_TIMING_SECONDS,
                clock=latency_clock(self._serving_threads),
            )
