"""The `prune` pass: from a profile's target to a smaller graph, repaired and shown to be exact."""

from pathlib import Path

from serveprune.compression.passes import PassContext, PassReport
from serveprune.compression.pruning.learning_samples import learning_samples
from serveprune.compression.pruning.pruning import Pruning
from serveprune.config.pruning import PruneOptions


class PrunePass:
    """Structured pruning to a target: least error first, repaired in closed form, no labels, no gradients."""

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        """See `Pass.apply`."""
        options = context.options
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
        )
        plan = pruning.plan(progress=lambda fraction: context.progress(0.5 * fraction))
        written = pruning.carry_out(plan, output=output, progress=lambda done: context.progress(0.5 + 0.5 * done))
        learned_from = "calibration set" if context.calibration is not None else "synthetic inputs"
        return PassReport({"learned_from": learned_from, **written})
