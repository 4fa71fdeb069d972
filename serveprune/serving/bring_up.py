"""The steps that bring one variant to life: find its artifact or have it built, judge it, load it, warm it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.environment import is_this_environment
from serveprune.artifacts.store import Artifact
from serveprune.backends.selection import ONNX_RUNTIME
from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ServePruneError, Unavailable
from serveprune.evaluation.choice import choose
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.registry import Model
from serveprune.models.repository import VariantRepository
from serveprune.models.variant import VariantState
from serveprune.serving.report import VariantReporter

_log = logging.getLogger(__name__)

_UNEXPECTED = "unexpected failure; see the server's log"


@dataclass(frozen=True, slots=True)
class Task:
    """One variant to bring up, as the config stood when the task was begun.

    Attributes:
        revision: Of the variant; once it is another, nobody waits for the result.
        profile: ``None`` for dense.
    """

    model: Model
    tier: str
    revision: int
    config: ModelConfig
    profile: ProfileConfig | None

    def __str__(self) -> str:
        return f"{self.model.name} {self.tier}"


class BringUp:
    """Takes the steps. For one thread."""

    def __init__(
        self,
        repository: VariantRepository,
        builder: ArtifactBuilder,
        reporter: VariantReporter,
        *,
        on_change: Callable[[Model, str], None],
    ) -> None:
        """Describe what the steps are taken with.

        Args:
            repository: Finds and loads artifacts.
            builder: Makes those that are not there.
            reporter: Counts builds.
            on_change: Called after every change of a variant, with its model and tier.
        """
        self._repository = repository
        self._builder = builder
        self._reporter = reporter
        self._on_change = on_change

    def find(self, task: Task) -> bool:
        """Serve what the store has; nothing happens if it has nothing.

        Returns:
            Whether the step is to be taken again: what is to run the variant is not there yet.
        """
        return self._guarded(task, self._find)

    def build(self, task: Task, *, cancelled: Event) -> bool:
        """Have built what the store lacks, and serve it; see `find`, which then finds it."""
        return self._guarded(task, lambda task: self._build(task, cancelled))

    def _guarded(self, task: Task, step: Callable[[Task], None]) -> bool:
        """Take a step; whatever goes wrong is the variant's failure alone."""
        try:
            if task.tier != DENSE and task.model.dense.artifact is None:
                reason = f"{DENSE} failed, and {task.tier} is made from it"
                self._update(task, state=VariantState.FAILED, reasons=(reason,))
            else:
                step(task)
        except Unavailable as error:
            pending = task.model.pending(task.tier)
            if pending is not None and pending.reasons != (error.message,):
                _log.warning("%s: it is tried again: %s", task, error.message)
            return self._update(task, state=VariantState.WAITING, reasons=(error.message,), progress=None)
        except ServePruneError as error:
            _log.error("%s: %s", task, error.message)
            self._update(task, state=VariantState.FAILED, reasons=(error.message,), progress=None)
        except Exception:  # the thread must go on to the other variants
            _log.exception("%s: unexpected failure", task)
            self._update(task, state=VariantState.FAILED, reasons=(_UNEXPECTED,), progress=None)
        return False

    def _find(self, task: Task) -> None:
        artifact = self._lookup(task)
        if artifact is None:
            return
        try:
            self._take(task, artifact)
        except NotFound as error:  # evicted by another process in this very moment: no more than a miss
            _log.info("%s: %s", task, error.message)

    def _lookup(self, task: Task) -> Artifact | None:
        if task.tier == DENSE:
            return self._repository.find_dense(task.config)
        dense = task.model.dense.artifact
        if dense is None or task.profile is None:
            raise Internal(f"{task.tier} was looked up before {DENSE}, which it is made from")
        return self._repository.find_tier(task.config, dense=dense, profile=task.profile)

    def _take(self, task: Task, artifact: Artifact) -> None:
        """Route to an artifact if the gate lets it: load it, warm, and only then show it."""
        built_here = is_this_environment(artifact.manifest.environment)
        ways, reasons = _ways(task, artifact)
        if reasons:
            _log.warning("%s: refused: %s", task, "; ".join(reasons))
            self._update(
                task,
                state=VariantState.REFUSED,
                artifact=artifact,
                reasons=reasons,
                progress=None,
                built_here=built_here,
            )
            return
        if not built_here and task.tier != DENSE:
            _log.warning("%s was built and measured in another environment", task)
        backend, artifact, instance = self._load_first(task, ways)
        try:
            if task.tier == DENSE:
                task.model.preprocessor = self._repository.load_preprocessor(artifact, instance)
            is_wanted = self._update(
                task,
                state=VariantState.READY,
                artifact=artifact,
                instance=instance,
                reasons=(),
                progress=None,
                backend=backend,
                built_here=built_here,
            )
        except BaseException:
            instance.retire()
            raise
        if is_wanted:
            _log.info("%s: ready (%s)", task, backend)
        else:
            instance.retire()

    def _load_first(self, task: Task, ways: Sequence[tuple[str, Artifact]]) -> tuple[str, Artifact, Instance]:
        """Load an artifact on the first backend that can: a store may have been filled where there were more."""
        for backend, artifact in ways:
            try:
                instance = self._repository.load(
                    artifact,
                    identity=(task.model.name, task.model.version, task.tier),
                    batches=BatchSettings(
                        task.config.max_batch_size,
                        task.config.max_batch_elements,
                        task.config.max_queue_delay_ms / 1000,
                    ),
                    dense=None if task.tier == DENSE else task.model.dense.instance,
                    backend=backend,
                )
            except (InvalidArgument, FailedPrecondition) as error:
                if (backend, artifact) == ways[-1]:
                    raise
                _log.warning("%s: not served by %s: %s", task, backend, error.message)
            else:
                return backend, artifact, instance
        raise Internal(f"{task.tier} was to be loaded on no backend")

    def _build(self, task: Task, cancelled: Event) -> None:
        request = BuildRequest(
            model_name=task.model.name,
            model=task.config,
            tier=task.tier,
            profile=task.profile,
            content=task.model.content,
        )
        self._update(task, state=VariantState.BUILDING, progress=BuildProgress("starting", 0.0))
        _log.info("%s: building", task)

        def show(progress: BuildProgress) -> None:
            self._update(task, progress=progress)

        result = self._builder.build(request, on_progress=show, cancelled=cancelled)
        if result.outcome is BuildOutcome.FAILED:
            self._fail(task, result, is_cancelled=cancelled.is_set())
            return
        self._reporter.count_build(task.model, task.tier, result)
        artifact = self._lookup(task)
        if artifact is None:
            raise ServePruneError(f"the build left artifact {result.key}, but the store no longer has it")
        self._take(task, artifact)

    def _fail(self, task: Task, result: BuildResult, *, is_cancelled: bool) -> None:
        if is_cancelled:
            _log.info("%s: the build was ended", task)
        else:
            self._reporter.count_build(task.model, task.tier, result)
            _log.error("%s: build failed: %s (log: %s)", task, "; ".join(result.reasons), result.log)
        log = self._repository.name_of(result.log) if result.log else None
        self._update(task, state=VariantState.FAILED, reasons=result.reasons, progress=None, log=log)

    def _update(self, task: Task, **changes: Any) -> bool:
        """Change the variant, and return whether it is still that of the task."""
        if task.model.update(task.tier, revision=task.revision, **changes) is None:
            return False
        self._on_change(task.model, task.tier)
        return True


def _ways(task: Task, artifact: Artifact) -> tuple[list[tuple[str, Artifact]], tuple[str, ...]]:
    """Return the backends that an artifact may be served by, best first, each with the figures that hold there.

    If there is none: why.
    """
    if task.profile is None:
        backend = task.config.backend
        return [(ONNX_RUNTIME if backend == "auto" else backend, artifact)], ()
    choice = choose(artifact.manifest.all_measurements, task.profile.gate)
    return [
        (each.backend, replace(artifact, manifest=artifact.manifest.led_by(each))) for each in choice.passing
    ], choice.reasons
