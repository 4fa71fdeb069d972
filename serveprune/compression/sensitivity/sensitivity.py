"""What single changes to a model cost and gain: from the store, or imported and measured."""

from collections.abc import Callable
from dataclasses import dataclass

from serveprune.artifacts.builder import BuildProgress, BuildRequest
from serveprune.artifacts.environment import environment
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.compression.build import build
from serveprune.compression.calibration import BuildSamples, samples_of
from serveprune.compression.sensitivity.measurement import Measurement, asked_steps
from serveprune.compression.sensitivity.report import SensitivityReport
from serveprune.compression.sensitivity.report_cache import ReportCache
from serveprune.config.model import DENSE
from serveprune.errors import InvalidArgument, Unavailable

_IMPORTED = 0.1


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked beyond the request.

    Attributes:
        samples: Most held-out samples to look at; ``None`` leaves it to the size of the model.
        again: Measure though the store has the answer.
    """

    samples: int | None = None
    again: bool = False


def measure_sensitivity(
    request: BuildRequest,
    question: Question,
    *,
    store: ArtifactStore,
    threads: int,
    threads_of_serving: int,
    on_progress: Callable[[BuildProgress], None],
) -> SensitivityReport:
    """Change one group or layer of a model at a time, and say what that costs and gains.

    Args:
        request: A model, and a profile whose `prune` and `quantize` passes say how to change it.
        question: How closely to look.
        store: Where the dense graph is found or put, and what is measured is kept.
        threads: Compute threads.
        threads_of_serving: Threads of one batch in serving; latency is measured with them.
        on_progress: Called on this thread.

    Raises:
        InvalidArgument: There are no samples, the graph is quantized, or there is nothing to change.
    """
    return _Sensitivity(request, question, store, threads, threads_of_serving, on_progress).run()


@dataclass(frozen=True, slots=True)
class _Sensitivity:
    request: BuildRequest
    question: Question
    store: ArtifactStore
    threads: int
    threads_of_serving: int
    on_progress: Callable[[BuildProgress], None]

    def run(self) -> SensitivityReport:
        asked_steps(self.request)
        if self.request.model.calibration is None:
            raise self._no_calibration()
        imported = build(
            self.request.model_copy(update={"tier": DENSE, "profile": None}),
            store=self.store,
            threads=self.threads,
            threads_of_serving=self.threads_of_serving,
            on_progress=lambda progress: self._report(progress.stage, _IMPORTED * min(progress.fraction, 0.99)),
        )
        assert imported.key is not None
        with self.store.lease(imported.key), self.store.staging() as workspace:
            dense = self.store.open(imported.key)
            if dense is None:
                raise Unavailable("the dense graph was evicted as soon as it was found; raise store.max_bytes")
            self._report("reading samples", _IMPORTED)
            samples = samples_of(dense, self.request.model)
            if samples.calibration is None:
                raise self._no_calibration()
            cache = ReportCache(self.store.pass_cache, recipe=self._recipe(dense, samples))
            known = None if self.question.again else cache.read()
            if known is not None:
                return known
            report = Measurement(
                dense,
                self.request,
                samples=samples,
                calibration=samples.calibration,
                most_samples=self.question.samples,
                workspace=workspace,
                cache=self.store.pass_cache,
                threads=self.threads,
                threads_of_serving=self.threads_of_serving,
                on_progress=self._measuring,
            ).report()
            cache.write(report)
            return report

    def _report(self, stage: str, fraction: float, message: str = "") -> None:
        self.on_progress(BuildProgress(stage, fraction, message))

    def _measuring(self, stage: str, fraction: float, message: str) -> None:
        self._report(stage, _IMPORTED + (1 - _IMPORTED) * fraction, message)

    def _no_calibration(self) -> InvalidArgument:
        return InvalidArgument(
            "sensitivity: expected unlabelled samples to learn from, got none; set "
            f"models.{self.request.model_name}.calibration.file (for the command line: --calibration)"
        )

    def _recipe(self, dense: Artifact, samples: BuildSamples) -> dict[str, object]:
        model = self.request.model
        options = dict(zip(("prune", "quantize"), asked_steps(self.request), strict=True))
        sets = {"calibration": samples.calibration, "evaluation": samples.evaluation}
        labels = samples.evaluation.labels
        return {
            "dense": dense.key,
            "model": self.request.model_name,
            "task": [model.task, getattr(model.source, "task", None)],
            "options": {
                name: None if step is None else [step.revision, step.model_dump(mode="json")]
                for name, step in options.items()
            },
            "samples": self.question.samples,
            "digests": {
                name: [] if found is None else [each.hex() for each in found.digests()] for name, found in sets.items()
            },
            "evaluation_set": samples.evaluation_set,
            "answers": [None if labels is None else labels.tolist(), samples.evaluation.pairs],
            "threads": self.threads_of_serving,
            "environment": environment(),
        }
