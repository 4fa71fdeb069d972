"""Brings the variants of all models to life, and says how they stand."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serveprune.artifacts.builder import ArtifactBuilder, BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.environment import is_this_environment
from serveprune.artifacts.store import Artifact
from serveprune.backends.selection import ONNX_RUNTIME
from serveprune.config.model import DENSE
from serveprune.config.profile import ProfileConfig
from serveprune.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ServePruneError
from serveprune.evaluation.choice import choose
from serveprune.models.instance import BatchSettings, Instance
from serveprune.models.registry import Model, Registry
from serveprune.models.repository import VariantRepository
from serveprune.models.variant import Variant, VariantState
from serveprune.oip.messages import ModelState, RepositoryEntry
from serveprune.routing.tier_selection import QUALIFIER, split_name
from serveprune.serving.report import VariantReporter, describe

_log = logging.getLogger(__name__)

_UNEXPECTED = "unexpected failure; see the server's log"


class ControlPlane:
    """Loads what the store has, has built what it lacks, one after the other, in a thread of its own.

    Dense comes before any compressed tier, and what is cached before what must be built, so that every model
    answers as early as it can.
    """

    def __init__(
        self,
        registry: Registry,
        repository: VariantRepository,
        builder: ArtifactBuilder,
        reporter: VariantReporter,
        *,
        profiles: Mapping[str, ProfileConfig],
        adaptive_state: Callable[[Model], dict[str, Any] | None] = lambda model: None,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._builder = builder
        self._reporter = reporter
        self._profiles = profiles
        self._adaptive_state = adaptive_state
        self._on_settled = on_settled
        self._stopped = threading.Event()
        self._settled = threading.Condition()
        self._thread = threading.Thread(target=self._bring_up, name="builds", daemon=True)
        for model in registry.models():
            for variant in model.variants.values():
                reporter.publish(model, variant)

    def start(self) -> None:
        """Begin to load and build, in the background."""
        self._thread.start()

    def cancel_builds(self) -> None:
        """Ask a running build to end and begin no other; does not wait."""
        self._stopped.set()

    def stop(self, *, timeout_seconds: float) -> bool:
        """End a running build, and take every instance out of service; idempotent.

        Returns:
            Whether the build, or the load of an artifact, ended in time.
        """
        self.cancel_builds()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        for model in self._registry.models():
            for variant in model.variants.values():
                if variant.instance is not None:
                    variant.instance.retire()
        return not self._thread.is_alive()

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Wait until every variant serves, was refused or failed; return whether that happened in time."""
        with self._settled:
            return self._settled.wait_for(
                lambda: all(model.is_settled for model in self._registry.models()), timeout_seconds
            )

    def index(self, *, ready_only: bool = False) -> list[RepositoryEntry]:
        """Return a line for each model, and for each of its tiers under its qualified name."""
        entries = []
        for model in self._registry.models():
            state = ModelState.READY if model.is_ready else _MODEL_STATES[model.dense.state]
            entries.append(RepositoryEntry(model.name, model.version, state, "; ".join(model.dense.reasons)))
            entries += [
                RepositoryEntry(
                    f"{model.name}{QUALIFIER}{variant.tier}",
                    model.version,
                    _MODEL_STATES[variant.state],
                    "; ".join(variant.reasons),
                )
                for variant in model.variants.values()
            ]
        return [entry for entry in entries if entry.state is ModelState.READY or not ready_only]

    def tiers(self, name: str) -> dict[str, Any]:
        """Return how the tiers of a model stand, ready for JSON.

        Raises:
            NotFound: No such model.
        """
        model = self._registry.get(split_name(name)[0])
        return {
            "name": model.name,
            "version": model.version,
            "default_tier": model.default_tier,
            "adaptive": self._adaptive_state(model),
            "tiers": [describe(variant) for variant in model.variants.values()],
        }

    def _bring_up(self) -> None:
        models = self._registry.models()
        for model in models:
            self._guarded(model, DENSE, self._find)
        for model in models:
            self._guarded(model, DENSE, self._build)
            self._each_tier(model, self._find)
        for model in models:
            self._each_tier(model, self._build)
        self._on_settled()

    def _each_tier(self, model: Model, step: Callable[[Model, str], None]) -> None:
        for tier in model.variants:
            if tier != DENSE:
                self._guarded(model, tier, step)

    def _guarded(self, model: Model, tier: str, step: Callable[[Model, str], None]) -> None:
        """Take a step with a variant that is not settled; whatever goes wrong is the variant's failure alone."""
        if self._stopped.is_set() or model.variants[tier].state.is_settled:
            return
        try:
            if tier != DENSE and model.dense.artifact is None:
                reason = f"{DENSE} failed, and {tier} is made from it"
                self._update(model, tier, state=VariantState.FAILED, reasons=(reason,))
            else:
                step(model, tier)
        except ServePruneError as error:
            _log.error("%s %s: %s", model.name, tier, error.message)
            self._update(model, tier, state=VariantState.FAILED, reasons=(error.message,), progress=None)
        except Exception:  # the thread must go on to the other variants
            _log.exception("%s %s: unexpected failure", model.name, tier)
            self._update(model, tier, state=VariantState.FAILED, reasons=(_UNEXPECTED,), progress=None)

    def _find(self, model: Model, tier: str) -> None:
        artifact = self._lookup(model, tier)
        if artifact is None:
            return
        try:
            self._take(model, tier, artifact)
        except NotFound as error:  # evicted by another process in this very moment: no more than a miss
            _log.info("%s %s: %s", model.name, tier, error.message)

    def _lookup(self, model: Model, tier: str) -> Artifact | None:
        if tier == DENSE:
            return self._repository.find_dense(model.config)
        dense = model.dense.artifact
        if dense is None:
            raise Internal(f"{tier} was looked up before {DENSE}, which it is made from")
        return self._repository.find_tier(model.config, dense=dense, profile=self._profiles[tier])

    def _take(self, model: Model, tier: str, artifact: Artifact) -> None:
        """Route to an artifact if the gate lets it: load it, warm, and only then show it."""
        built_here = is_this_environment(artifact.manifest.environment)
        ways, reasons = self._ways(model, tier, artifact)
        if reasons:
            _log.warning("%s %s: refused: %s", model.name, tier, "; ".join(reasons))
            self._update(
                model,
                tier,
                state=VariantState.REFUSED,
                artifact=artifact,
                reasons=reasons,
                progress=None,
                built_here=built_here,
            )
            return
        if not built_here and tier != DENSE:
            _log.warning("%s %s was built and measured in another environment", model.name, tier)
        backend, artifact, instance = self._load_first(model, tier, ways)
        if tier == DENSE:
            try:
                model.preprocessor = self._repository.load_preprocessor(artifact, instance)
            except BaseException:
                instance.retire()
                raise
        self._update(
            model,
            tier,
            state=VariantState.READY,
            artifact=artifact,
            instance=instance,
            progress=None,
            backend=backend,
            built_here=built_here,
        )
        _log.info("%s %s: ready (%s)", model.name, tier, backend)

    def _ways(self, model: Model, tier: str, artifact: Artifact) -> tuple[list[tuple[str, Artifact]], tuple[str, ...]]:
        """Return the backends that an artifact may be served by, best first, each with the figures that hold there.

        If there is none: why.
        """
        if tier == DENSE:
            backend = model.config.backend
            return [(ONNX_RUNTIME if backend == "auto" else backend, artifact)], ()
        choice = choose(artifact.manifest.all_measurements, self._profiles[tier].gate)
        return [
            (each.backend, replace(artifact, manifest=artifact.manifest.led_by(each))) for each in choice.passing
        ], choice.reasons

    def _load_first(
        self, model: Model, tier: str, ways: Sequence[tuple[str, Artifact]]
    ) -> tuple[str, Artifact, Instance]:
        """Load an artifact on the first backend that can: a store may have been filled where there were more."""
        for backend, artifact in ways:
            try:
                instance = self._repository.load(
                    artifact,
                    identity=(model.name, model.version, tier),
                    batches=BatchSettings(
                        model.config.max_batch_size,
                        model.config.max_batch_elements,
                        model.config.max_queue_delay_ms / 1000,
                    ),
                    dense=None if tier == DENSE else model.dense.instance,
                    backend=backend,
                )
            except (InvalidArgument, FailedPrecondition) as error:
                if (backend, artifact) == ways[-1]:
                    raise
                _log.warning("%s %s: not served by %s: %s", model.name, tier, backend, error.message)
            else:
                return backend, artifact, instance
        raise Internal(f"{tier} was to be loaded on no backend")

    def _build(self, model: Model, tier: str) -> None:
        request = BuildRequest(
            model_name=model.name,
            model=model.config,
            tier=tier,
            profile=None if tier == DENSE else self._profiles[tier],
        )
        self._update(model, tier, state=VariantState.BUILDING, progress=BuildProgress("starting", 0.0))
        _log.info("%s %s: building", model.name, tier)

        def show(progress: BuildProgress) -> None:
            self._update(model, tier, progress=progress)

        result = self._builder.build(request, on_progress=show, cancelled=self._stopped)
        self._reporter.count_build(model, tier, result)
        if result.outcome is BuildOutcome.FAILED:
            self._fail(model, tier, result)
            return
        artifact = self._lookup(model, tier)
        if artifact is None:
            raise ServePruneError(f"the build left artifact {result.key}, but the store no longer has it")
        self._take(model, tier, artifact)

    def _fail(self, model: Model, tier: str, result: BuildResult) -> None:
        log = self._repository.name_of(result.log) if result.log else None
        if not self._stopped.is_set():
            _log.error("%s %s: build failed: %s (log: %s)", model.name, tier, "; ".join(result.reasons), result.log)
        self._update(model, tier, state=VariantState.FAILED, reasons=result.reasons, progress=None, log=log)

    def _update(self, model: Model, tier: str, **changes: Any) -> Variant:
        variant = model.update(tier, **changes)
        self._reporter.publish(model, variant)
        with self._settled:
            self._settled.notify_all()
        return variant


_MODEL_STATES = {
    VariantState.WAITING: ModelState.LOADING,
    VariantState.BUILDING: ModelState.LOADING,
    VariantState.READY: ModelState.READY,
    VariantState.REFUSED: ModelState.UNAVAILABLE,
    VariantState.FAILED: ModelState.UNAVAILABLE,
}
