"""The `prune` pass; for whole units: from a profile's target to a smaller graph, repaired and shown to be exact."""

from pathlib import Path

from serveprune.compression.passes import PassContext, PassReport
from serveprune.compression.pruning.learning_samples import learned_from, learning_samples, noise_warnings
from serveprune.compression.pruning.pruning import Pruning
from serveprune.compression.sparsity.weight_prune import WeightPrunePass
from serveprune.config.pruning import PruneOptions
from serveprune.config.sparsity import WeightPruneOptions


class PrunePass:
    """Structured pruning to a target: least error first, repaired in closed form."""

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        """See `Pass.apply`."""
        options = context.options
        if isinstance(options, WeightPruneOptions):
            return WeightPrunePass().apply(graph, output=output, context=context)
        assert isinstance(options, PruneOptions)
        pruning = Pruning(
            graph,
            options,
            samples=learning_samples(context.calibration, options, graph=graph, seed=context.seed),
            workspace=context.workspace,
            threads=context.threads,
            serving_threads=context.serving_threads,
            cache=context.cache,
            seed=context.seed,
            task=context.task,
            model_name=context.model_name,
        )
        plan = pruning.plan(progress=lambda fraction: context.progress(0.5 * fraction))
        written = pruning.carry_out(plan, output=output, progress=lambda done: context.progress(0.5 + 0.5 * done))
        warnings = [*noise_warnings(context.calibration, options), *pruning.warnings]
        return PassReport({"learned_from": learned_from(context.calibration), "warnings": warnings, **written})
