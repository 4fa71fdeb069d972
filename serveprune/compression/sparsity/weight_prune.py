"""The `prune` pass with ``structure: weights``: zeros in place, and out with what has become zero in whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.kept_channels import write_kept_channels
from serveprune.compression.passes import PassContext, PassReport
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.equivalence import check_equivalence, check_surgery
from serveprune.compression.pruning.gradients import GradientSource
from serveprune.compression.pruning.learning_samples import learned_from, learning_samples, noise_warnings
from serveprune.compression.pruning.observation import observe_sizes, sized_feeds
from serveprune.compression.pruning.preparation import prepare
from serveprune.compression.pruning.remaining_channels import remaining_channels
from serveprune.compression.pruning.surgery import remove_units
from serveprune.compression.pruning.workload import workload_feeds
from serveprune.compression.sparsity.prunable_weights import select_weights
from serveprune.compression.sparsity.sparsification import Sparsification
from serveprune.compression.sparsity.sparsity_report import measured_sparsity, runtime_remark
from serveprune.compression.sparsity.zero_units import removable_units
from serveprune.config.pruning import WorkloadOptions
from serveprune.config.sparsity import WeightPruneOptions
from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.footprint import graph_record
from serveprune.graph.onnx_file import read_header, write_graph
from serveprune.graph.onnx_source import probe_inputs
from serveprune.oip.tensor import Array

_SPARSIFIED = 0.9


class WeightPrunePass:
    """Single weights to zero, until so many are, or in a pattern."""

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        """See `Pass.apply`."""
        options = context.options
        assert isinstance(options, WeightPruneOptions)
        samples = None
        if options.learns:
            samples = learning_samples(context.calibration, options, graph=graph, seed=context.seed)
        prepared = context.workspace / "prepared.onnx"
        dense = prepare(graph, output=prepared)
        model = ir.load(prepared)
        selection = select_weights(model, embeddings=options.embeddings, ignore=options.ignore)
        work = Sparsification(
            model,
            selection.weights,
            options,
            dense=dense,
            samples=samples,
            workspace=context.workspace,
            threads=context.threads,
            seed=context.seed,
            source=_source(prepared, options, samples, context=context),
        )
        work.run(progress=lambda done: context.progress(_SPARSIFIED * done))
        reached = measured_sparsity(model, work.weights)["sparsity"]
        removed = self._cut(model, options, output=output, context=context)
        found = measured_sparsity(ir.load(output), work.weights)
        report: dict[str, Any] = {
            **found,
            "sparsity_before_removal": reached,
            "asked": options.sparsity,
            "pattern": options.pattern,
            "removed_units": removed,
            "runtime": runtime_remark(pattern=options.pattern, removed_units=sum(removed.values())),
            "left_whole": {**selection.left_whole, **work.without_pattern},
            "by_magnitude": list(work.by_magnitude),
            "warnings": _warnings(work, options, calibration=context.calibration),
        }
        if options.learns:
            report["learned_from"] = learned_from(context.calibration)
        context.progress(1.0)
        return PassReport(report)

    def _cut(
        self, model: ir.Model, options: WeightPruneOptions, *, output: Path, context: PassContext
    ) -> Mapping[str, int]:
        """Write the graph without units that have become zero; return how many of each group went."""
        sparse = context.workspace / "sparse.onnx"
        write_graph(model, sparse)
        sample = context.calibration.samples[0] if context.calibration is not None else None
        model = ir.load(sparse)
        graph = DependencyGraph(model, observe_sizes(model, workspace=context.workspace, sample=sample))
        # Fewer inputs would break the groups of a pattern.
        units = removable_units(model, graph) if options.pattern is None else ()
        if not units:
            write_graph(model, output)
            return {}
        feeds = _runnable_feeds(sparse, context.calibration)
        check_surgery(sparse, graph, units, feeds, workspace=context.workspace)
        remove_units(model, graph, units)
        write_kept_channels(model, remaining_channels(ir.load(sparse), graph, units))
        write_graph(model, output)
        check_equivalence(output, sparse, feeds)
        gone = frozenset(units)
        counts = {group.name: sum(int(unit) in gone for unit in group.units) for group in graph.groups}
        return {name: count for name, count in counts.items() if count}


def _source(
    graph: Path, options: WeightPruneOptions, samples: Dataset | None, *, context: PassContext
) -> GradientSource | None:
    if samples is None or not options.learns_by_gradients:
        return None
    return GradientSource(
        samples=samples,
        task=context.task,
        outputs=[record.spec for record in graph_record(graph).outputs],
        loss=options.loss,
        name=context.model_name,
        seed=context.seed,
        threads=context.threads,
    )


def _runnable_feeds(graph: Path, calibration: Dataset | None) -> Sequence[Mapping[str, Array]]:
    """Return inputs that the graph takes, real ones if there are some."""
    if calibration is not None:
        return [workload_feeds(calibration, WorkloadOptions())]
    session = OnnxRuntimeBackend().load(graph)
    complaint = ""
    for feeds in sized_feeds(probe_inputs(read_header(graph), label=graph.name)):
        try:
            session.run(feeds[0])
        except ServePruneError as error:
            complaint = error.message
        else:
            return [feeds[0]]
    raise InvalidArgument(f"prune: the graph takes no inputs of the sizes tried: {complaint}; give calibration samples")


def _warnings(work: Sparsification, options: WeightPruneOptions, *, calibration: Dataset | None) -> Sequence[str]:
    found = list(noise_warnings(calibration, options)) if options.learns else []
    if work.without_pattern:
        names = "; ".join(f"{name}: {reason}" for name, reason in work.without_pattern.items())
        found.append(f"pattern {options.pattern} leaves some layers whole: {names}")
    return found
