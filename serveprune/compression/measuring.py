"""A tier against the dense graph it was made from, both run as serving will run them."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from serveprune.artifacts.manifest import Measurements
from serveprune.artifacts.store import Artifact
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.calibration import BuildSamples
from serveprune.config.model import ModelConfig
from serveprune.evaluation.latency import latency_clock
from serveprune.evaluation.measure import measure
from serveprune.evaluation.task import infer_task
from serveprune.graph.footprint import graph_record

# Where each stage starts and ends, as a fraction of the whole measurement.
_STAGES = {"quality": (0.0, 0.4), "batch deviation": (0.4, 0.6), "latency": (0.6, 1.0)}


def measure_tier(
    dense: Artifact,
    graph: Path,
    *,
    model: ModelConfig,
    samples: BuildSamples,
    threads: int,
    on_progress: Callable[[str, float], None],
) -> Measurements:
    """Load both graphs in ONNX Runtime and measure quality, batch deviation and latency.

    Args:
        dense: The imported graph.
        graph: The tier's ONNX file.
        model: Says what the answers mean.
        samples: Held-out samples to measure on.
        threads: Of one batch in serving.
        on_progress: Takes the stage and the fraction done of all stages.

    Raises:
        InvalidArgument: ONNX Runtime cannot load what the passes wrote.
        FailedPrecondition: The two graphs cannot be compared.
    """

    def report(stage: str, fraction: float) -> None:
        start, end = _STAGES.get(stage, (0.0, 1.0))
        on_progress(f"measuring {stage}", start + (end - start) * fraction)

    backend = OnnxRuntimeBackend()
    with (
        closing(backend.load(dense.graph, threads=threads)) as reference,
        closing(backend.load(graph, threads=threads)) as tier,
    ):
        labelled = samples.evaluation.labels is not None
        return measure(
            reference,
            tier,
            samples.evaluation,
            task=infer_task(model, reference.outputs, labelled=labelled),
            threads=threads,
            dense_bytes=dense.manifest.graph.bytes,
            tier_bytes=graph_record(graph).bytes,
            evaluation_set=samples.evaluation_set,
            task_is_told=model.task is not None,
            clock=latency_clock(threads),
            on_progress=report,
        )
