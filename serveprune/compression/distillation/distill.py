"""The `distill` pass: the graph that pruning left learns from the dense one."""

from pathlib import Path

from serveprune.compression.distillation.distillation import Distillation
from serveprune.compression.passes import PassContext, PassReport
from serveprune.config.distillation import DistillOptions


class DistillPass:
    """Knowledge distillation with the dense graph as the teacher; no labels needed, the graph keeps its shape."""

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        """See `Pass.apply`."""
        options = context.options
        assert isinstance(options, DistillOptions)
        distillation = Distillation(graph, options, context=context)
        distillation.run()
        distillation.write(output)
        context.progress(1.0)
        return PassReport(distillation.findings())
