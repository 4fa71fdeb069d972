"""A tier against the dense graph it was made from, both run as serving will run them."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from serveprune.artifacts.manifest import Measurements
from serveprune.artifacts.store import Artifact
from serveprune.backends.selection import ONNX_RUNTIME, OPENVINO, load_backend
from serveprune.compression.calibration import BuildSamples
from serveprune.config.model import ModelConfig
from serveprune.errors import ResourceExhausted, ServePruneError, Unavailable
from serveprune.evaluation.latency import latency_clock
from serveprune.evaluation.measure import measure
from serveprune.evaluation.task import infer_task
from serveprune.graph.footprint import graph_record

BACKEND_CHOICES = (ONNX_RUNTIME, OPENVINO, "auto")
_BACKENDS = {ONNX_RUNTIME: (ONNX_RUNTIME,), OPENVINO: (OPENVINO,), "auto": (ONNX_RUNTIME, OPENVINO)}
"""What a tier is measured on, by what the config says."""

# Where each stage starts and ends, as a fraction of the whole measurement.
_STAGES = {"quality": (0.0, 0.4), "batch deviation": (0.4, 0.6), "latency": (0.6, 1.0)}


@dataclass(frozen=True, slots=True)
class TierMeasurements:
    """What was measured of one graph.

    Attributes:
        found: One for each backend, in the order of trying.
        unmeasured: Backend that could not run it -> why.
    """

    found: tuple[Measurements, ...]
    unmeasured: Mapping[str, str]


def measure_tier(
    dense: Artifact,
    graph: Path,
    *,
    model: ModelConfig,
    samples: BuildSamples,
    threads: int,
    on_progress: Callable[[str, float], None],
) -> TierMeasurements:
    """Measure quality, batch deviation and latency of a tier on each backend that the model may be served by.

    What it is compared with is always dense on ONNX Runtime, so that figures of several backends compare.

    Args:
        dense: The imported graph.
        graph: The tier's ONNX file.
        model: Says what the answers mean, and what is to run it.
        samples: Held-out samples to measure on.
        threads: Of one batch in serving.
        on_progress: Takes the stage and the fraction done of all stages.

    Raises:
        InvalidArgument: The only backend, or ONNX Runtime, cannot load what the passes wrote.
        MissingExtra: The only backend is not installed.
        FailedPrecondition: The two graphs cannot be compared.
    """
    names = _BACKENDS[model.backend]
    found: list[Measurements] = []
    unmeasured: dict[str, str] = {}
    for index, name in enumerate(names):

        def report(stage: str, fraction: float, *, index: int = index, name: str = name) -> None:
            start, end = _STAGES.get(stage, (0.0, 1.0))
            place = f" with {name}" if len(names) > 1 else ""
            done = start + (end - start) * fraction
            on_progress(f"measuring {stage}{place}", (index + done) / len(names))

        try:
            found.append(
                _measure_on(name, dense, graph, model=model, samples=samples, threads=threads, on_progress=report)
            )
        except ServePruneError as error:
            if name == names[0] or isinstance(error, ResourceExhausted | Unavailable):
                # The latter may be otherwise another time, and what is recorded holds for good.
                raise
            # The graph is served all the same, by the backend that runs every graph.
            unmeasured[name] = error.message
    return TierMeasurements(tuple(found), unmeasured)


def _measure_on(
    backend: str,
    dense: Artifact,
    graph: Path,
    *,
    model: ModelConfig,
    samples: BuildSamples,
    threads: int,
    on_progress: Callable[[str, float], None],
) -> Measurements:
    with (
        closing(load_backend(ONNX_RUNTIME).load(dense.graph, threads=threads)) as reference,
        closing(load_backend(backend).load(graph, threads=threads)) as tier,
    ):
        labelled = samples.evaluation.labels is not None
        measured = measure(
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
            on_progress=on_progress,
        )
    return measured.model_copy(update={"backend": backend})
