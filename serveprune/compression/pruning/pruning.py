"""One model on its way to a target: study, plan, surgery, repair, and the checks between."""

from collections.abc import Callable, Mapping
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from serveprune.artifacts.digest import sha256_file
from serveprune.artifacts.environment import environment
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.consumers import consumers_of
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
from serveprune.compression.pruning.linear import LinearMap
from serveprune.compression.pruning.observation import observe, observe_sizes
from serveprune.compression.pruning.plan import GroupPlan, Plan, describe
from serveprune.compression.pruning.preparation import prepare
from serveprune.compression.pruning.repair import reestimate_batch_norms, refit
from serveprune.compression.pruning.stopwatch import Stopwatch
from serveprune.compression.pruning.study import GroupStudy, Study, StudyCache, study_model
from serveprune.compression.pruning.surgery import remove_blocks, remove_units
from serveprune.compression.pruning.target import allocate_target, candidate_widths
from serveprune.compression.pruning.workload import workload_feeds
from serveprune.config.pruning import PruneOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.latency import measure_latency
from serveprune.graph.node import key
from serveprune.graph.onnx_file import write_graph

_MISSED_RATIO = 0.05
"""A finished model that misses its latency by more is allocated once more, with what was measured."""

_ENOUGH_ROWS = 2.0
"""Rows per input below which least squares fits the samples rather than the model."""

_TIMING_ROUNDS = 25
_TIMING_SECONDS = 12.0

_KINDS = {"auto": ("channels", "neurons", "heads"), "blocks": ("channels", "neurons", "heads")}
_WITH_BLOCKS = ("auto", "blocks")


class Pruning:
    """Prunes one graph; `plan` changes nothing, `carry_out` writes the result."""

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
            seed: Of random importance.

        Raises:
            InvalidArgument: The graph is quantized already, or has nothing to prune.
        """
        self._options = options
        self._samples = samples
        self._workspace = workspace
        self._threads = threads
        self._serving_threads = serving_threads
        self._cache = cache
        self._seed = seed
        self._prepared = workspace / "prepared.onnx"
        self._dense = prepare(graph, output=self._prepared)
        attention: Literal["heads", "head_dims"] = "head_dims" if options.structure == "head_dims" else "heads"
        observation = observe_sizes(self._dense, workspace=workspace, sample=samples.samples[0])
        self._graph = DependencyGraph(self._dense, observation, attention=attention)
        self._indices = tuple(index for index, group in enumerate(self._graph.groups) if self._may_shrink(group))
        if not self._indices:
            raise InvalidArgument(f"prune: nothing in this graph can be removed; kept whole: {self._kept_whole()}")
        self._require_matches()
        self._blocks = self._removable_blocks()
        self._feeds = workload_feeds(samples, options.workload)

    @property
    def graph(self) -> DependencyGraph:
        """What couples with what, and what is pinned and why."""
        return self._graph

    @property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        """Residual blocks that may go as a whole, with the names of the groups inside."""
        return {
            name: tuple(self._graph.groups[index].name for index in inside) for name, inside in self._blocks.items()
        }

    @property
    def block_errors(self) -> Mapping[str, float]:
        """Share of the answers' energy that is lost without each block; known once `plan` has run."""
        return self._study.block_errors

    def why_left_out(self, group: PruningGroup) -> str | None:
        """Return why a group of the graph stays whole whatever the target; ``None`` if it may shrink."""
        structure = self._options.structure
        if group.kind not in _KINDS.get(structure, (structure,)):
            return f"structure: {structure} leaves {group.kind} whole"
        names = [piece.name for piece in group.slices]
        names += [contraction.node.name or "" for contraction in group.contractions]
        for pattern in self._options.ignore:
            if any(fnmatchcase(name, pattern) for name in names):
                return f"ignore: {pattern}"
        if not consumers_of(group):
            return "no layer with weights of its own reads it, so nothing could make up for the loss"
        return None

    def _require_matches(self) -> None:
        """Refuse a pattern to ignore that matches nothing: it was meant to protect something."""
        names = {node.name or "" for node in self._dense.graph} | set(self._dense.graph.initializers)
        for pattern in self._options.ignore:
            if not any(fnmatchcase(name, pattern) for name in names):
                weights = ", ".join(sorted({group.name for group in self._graph.groups}))
                raise InvalidArgument(
                    f"prune: the ignore pattern {pattern!r} matches no weight and no node of the graph; weights that "
                    f"can shrink are: {weights[:500]}"
                )

    def plan(self, *, progress: Callable[[float], None] = lambda fraction: None) -> Plan:
        """Choose how many units each group keeps.

        Raises:
            InvalidArgument: The target cannot be reached; the message says how far one can get.
        """
        self._study = self._studied()
        progress(0.6)
        self._cost = self._cost_model()
        progress(0.95)
        return self._plan(self._allocate(self._cost), self._cost)

    def carry_out(
        self, plan: Plan, *, output: Path, progress: Callable[[float], None] = lambda fraction: None
    ) -> dict[str, Any]:
        """Cut, check, repair and write; return what was done, ready for JSON.

        A latency target that the finished model misses by more than 5 % is allocated once more.

        Raises:
            BuildFailed: The smaller graph does not compute what the masked one does.
        """
        model, tries = self._cut(plan), 1
        report: dict[str, Any] = {}
        if isinstance(self._cost, LatencyTable):
            dense_ms, pruned_ms = self._measured_ms(model)
            if abs(pruned_ms / self._target_ms(dense_ms=dense_ms) - 1) > _MISSED_RATIO:
                # The table knows the dense model by its own clock, so only the ratio is taken over.
                seen = pruned_ms * self._cost.dense_ms / dense_ms
                self._cost = self._cost.corrected(self._widths(plan), measured_ms=seen)
                plan = self._plan(self._allocate(self._cost), self._cost)
                model, tries = self._cut(plan), 2
                dense_ms, pruned_ms = self._measured_ms(model)
            report = {"measured_ms": {"dense": dense_ms, "pruned": pruned_ms}, "allocations": tries}
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
        write_graph(model, output)
        return report | {"warnings": self._warnings()} | describe(plan)

    def _warnings(self) -> list[str]:
        if self._study.rows_per_input >= _ENOUGH_ROWS:
            return []
        warning = (
            f"the {len(self._samples)} calibration samples give {self._study.rows_per_input:.1f} rows per input of the "
            f"widest layer, expected at least {_ENOUGH_ROWS:g}: the fit leans on the old weights; give more samples"
        )
        return [warning]

    def _cut(self, plan: Plan) -> ir.Model:
        model = ir.load(self._prepared)
        remove_blocks(model, self._graph, plan.removed_blocks)
        remove_units(model, self._graph, plan.removed)
        return model

    def _repair(self, model: ir.Model, plan: Plan, *, progress: Callable[[float], None]) -> None:
        repair = self._options.repair
        if "least_squares" in repair or "variance" in repair:
            stages, kept = self._repair_stages(plan)
            refit(
                model,
                stages,
                dense=self._dense,
                kept=kept,
                steps=repair,
                samples=self._samples,
                workspace=self._workspace,
                threads=self._threads,
                progress=progress,
            )
        if "batch_norm" in repair:
            reestimate_batch_norms(model, samples=self._samples, workspace=self._workspace, threads=self._threads)

    def _repair_stages(self, plan: Plan) -> tuple[list[list[LinearMap]], dict[str, NDArray[np.int64]]]:
        """Return the maps that lost inputs, in the order they run, those that read the same value together."""
        lost = {group.name for group in plan.groups if group.after and group.removed}
        wanted = {
            consumer.map.node: consumer.map
            for group in self._graph.groups
            if group.name in lost
            for consumer in consumers_of(group)
        }
        gone = frozenset(plan.removed)
        stages: list[list[LinearMap]] = []
        kept: dict[str, NDArray[np.int64]] = {}
        for node in self._dense.graph:
            item = wanted.get(node.outputs[0].name or "")
            if item is None:
                continue
            axes = self._graph.axes(item.node)
            ids = axes[1 if item.operator == "Conv" else -1]
            removed = self._graph.removed_positions(ids, gone)
            if ids is not None and len(removed):
                kept[item.node] = np.delete(np.arange(len(ids)), removed)
            if stages and stages[-1][0].data == item.data:
                stages[-1].append(item)
            else:
                stages.append([item])
        return stages, kept

    def _studied(self) -> Study:
        groups = [self._graph.groups[index] for index in self._indices]
        importance = self._importance()
        cache = StudyCache(
            self._cache,
            recipe={
                "revision": self._options.revision,
                "graph": sha256_file(self._prepared),
                "importance": self._options.importance,
                "structure": self._options.structure,
                "groups": [group.name for group in groups],
                "seed": self._seed,
                "blocks": sorted(self._blocks),
                "samples": [digest.hex() for digest in self._samples.digests()],
                "environment": environment(),
            },
        )
        study = cache.read()
        if study is None:
            study = study_model(
                self._prepared,
                self._dense,
                self._graph,
                groups,
                list(self._blocks),
                importance,
                samples=self._samples,
                workspace=self._workspace,
                threads=self._threads,
            )
            cache.write(study)
        return study

    def _importance(self) -> Importance:
        match self._options.importance:
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
                self._dense, self._graph, self._candidate_widths(), feeds=self._feeds, stopwatch=stopwatch
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
            raise InvalidArgument(f"prune: {error.message}; kept whole: {self._kept_whole()}") from error

    def _movables(self) -> list[Movable]:
        """Return the choices of the search: a width for every group, and whether each block stays."""
        widths = self._candidate_widths()
        choices: dict[int, Candidates] = {}
        for index in self._indices:
            group, study = self._graph.groups[index], self._study_of(index)
            errors = study.answer_errors[[group.width - width for width in widths[index]]]
            choices[index] = Candidates(index, np.array(widths[index]), errors)
        movables: list[Movable] = []
        for name, inside in self._blocks.items():
            parts = tuple(choices.pop(index) for index in inside)
            movables.append(RemovableBlock(name, parts, self._study.block_errors[name]))
        return [*movables, *choices.values()]

    def _removable_blocks(self) -> dict[str, tuple[int, ...]]:
        """Return the blocks that may go, with the groups inside each; a group is inside the smallest one only."""
        if self._options.structure not in _WITH_BLOCKS:
            return {}
        found: dict[str, tuple[int, ...]] = {}
        taken: set[int] = set()
        for block in sorted(self._graph.blocks, key=lambda block: len(block.nodes)):
            nodes = set(block.nodes)
            inside = tuple(
                index
                for index in self._indices
                if index not in taken
                and all(key(contraction.node) in nodes for contraction in self._graph.groups[index].contractions)
            )
            # What holds no group costs what no table knows, and a block around another is left to that one.
            if inside and not nodes & {name for other in found for name in self._nodes_of(other)}:
                found[block.name] = inside
                taken.update(inside)
        return found

    def _nodes_of(self, name: str) -> tuple[str, ...]:
        return next(block.nodes for block in self._graph.blocks if block.name == name)

    def _study_of(self, index: int) -> GroupStudy:
        return self._study.groups[self._indices.index(index)]

    def _plan(self, allocation: WidthAllocation, cost: CostModel) -> Plan:
        plans = []
        dense_cost = cost.total(cost.dense)
        for index in self._indices:
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
                "unit": self._options.target.kind,
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

    def _target_ms(self, *, dense_ms: float) -> float:
        target = self._options.target
        return dense_ms / target.value if target.kind == "speedup" else target.value

    def _widths(self, plan: Plan) -> Widths:
        widths = self._cost.dense.copy()
        for index, group in zip(self._indices, plan.groups, strict=True):
            widths[index] = group.after
        return widths

    def _measured_ms(self, pruned: ir.Model) -> tuple[float, float]:
        """Return the milliseconds of one batch of the dense and of the cut graph, timed in turns."""
        backend, path = OnnxRuntimeBackend(), self._workspace / "cut.onnx"
        write_graph(pruned, path)
        with (
            closing(backend.load(self._prepared, threads=self._serving_threads)) as dense,
            closing(backend.load(path, threads=self._serving_threads)) as small,
        ):
            record = measure_latency(
                lambda: dense.run(self._feeds),
                lambda: small.run(self._feeds),
                batch_size=self._options.workload.batch_size,
                threads=self._serving_threads,
                rounds=_TIMING_ROUNDS,
                budget_seconds=_TIMING_SECONDS,
            )
        return record.dense_ms, record.dense_ms * record.ratio

    def _candidate_widths(self) -> list[tuple[int, ...]]:
        narrows = self._options.structure != "blocks"
        return [
            candidate_widths(group, round_to=self._options.round_to)
            if narrows and index in self._indices
            else (group.width,)
            for index, group in enumerate(self._graph.groups)
        ]

    def _may_shrink(self, group: PruningGroup) -> bool:
        return self.why_left_out(group) is None

    def _kept_whole(self) -> str:
        return "; ".join(f"{reason} ({count})" for reason, count in self._graph.why_pinned()[:4]) or "everything"
