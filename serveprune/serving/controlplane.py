"""Brings the variants of all models to life, and says how they stand."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from serveprune.artifacts.builder import ArtifactBuilder
from serveprune.config.model import DENSE
from serveprune.config.profile import ProfileConfig
from serveprune.config.versions import version_order
from serveprune.models.instance import Instance
from serveprune.models.registry import Model, Registry
from serveprune.models.repository import VariantRepository
from serveprune.models.variant import Variant, VariantState
from serveprune.oip.messages import ModelState, RepositoryEntry
from serveprune.routing.tier_selection import QUALIFIER, split_name
from serveprune.serving.bring_up import BringUp, Task
from serveprune.serving.loadable_models import FixedModels, LoadableModels
from serveprune.serving.report import VariantReporter, describe_model

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 1.0
_AGAIN_SECONDS = 1.0
_FIXED = FixedModels()
_OF_THE_GRAPH = ("source", "version", "preprocessing", "task")
"""What of a model's config makes it another model when it changes."""


class ControlPlane:
    """Loads what the store has, has built what it lacks, one after the other, in a thread of its own.

    Dense comes before any compressed tier, and what is cached before what must be built, so that every model
    answers as early as it can. When the config changes, what serves goes on serving until what takes its place is
    ready: tier by tier where the dense graph stays, the whole model at once where it does not. A version that is no
    longer wanted serves until one that is wanted is ready with all its tiers. A variant for which there is no place yet
    keeps no other waiting: it is tried again when all others were.
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
        is_awaited: Callable[[Model], bool] = lambda model: False,
        loadable: LoadableModels = _FIXED,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        """Show what is to be; nothing runs yet.

        Args:
            registry: Of the models that are served.
            repository: Finds and loads artifacts.
            builder: Makes those that are not there.
            reporter: Told of every change of a variant.
            profiles: By tier.
            adaptive_state: How a model's adaptive deployment stands, ready for JSON.
            on_settled: Called when nothing is left to bring up.
            loadable: Loads and unloads models by request.
            is_awaited: Tells whether a request that was admitted to a model is still on its way to one of its variants.
            grace_seconds: How long what was taken out of the registry is kept for requests that are on their way to it.
        """
        self._registry = registry
        self._bring_up = BringUp(repository, builder, reporter, on_change=self._show)
        self._reporter = reporter
        self._profiles = profiles
        self._adaptive_state = adaptive_state
        self._on_settled = on_settled
        self._grace_seconds = grace_seconds
        self._is_awaited = is_awaited
        self.load, self.unload, self._unloaded = loadable.load, loadable.unload, loadable.unloaded
        self._staged: Mapping[tuple[str, str], Model] = {}
        self._leaving: frozenset[Model] = frozenset()
        self._retiring: dict[threading.Timer, tuple[Instance, ...]] = {}
        self._running: tuple[Task, threading.Event] | None = None
        self._postponed: set[tuple[Model, str]] = set()
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._has_work = True
        self._thread = threading.Thread(target=self._work, name="builds", daemon=True)
        for model in registry.models():
            self._publish(model)

    def start(self) -> None:
        """Begin to load and build, in the background."""
        self._thread.start()

    def apply(
        self,
        models: Iterable[Model],
        *,
        profiles: Mapping[str, ProfileConfig],
        touched: Collection[tuple[str, str, str]],
    ) -> list[Model]:
        """Have other models, or the same in other ways, from now on; returns before anything is loaded or built.

        Tiers that failed are brought up anew, whatever has changed: a store that was away, a disk that was full.

        Args:
            models: As a server that starts with the new config would have them; none has been brought up.
            profiles: By tier.
            touched: Model, version and tier of what is to be built or loaded anew, for its profile or its model is
                another one.

        Returns:
            All that there are: such as serve, and such as are to take the place of one that does.
        """
        with self._changed:
            self._profiles = profiles
            served: list[Model] = []
            staged: dict[tuple[str, str], Model] = {}
            for wanted in models:
                present, waiting = self._registry.find(*wanted.key), self._staged.get(wanted.key)
                if present is not None and _same_graph(present, wanted):
                    served.append(self._revised(present, wanted, touched=touched))
                elif present is None or present.dense.instance is None:
                    served.append(wanted)
                else:
                    served.append(present)
                    staged[wanted.key] = wanted
                    if waiting is not None and _same_graph(waiting, wanted):
                        staged[wanted.key] = self._revised(waiting, wanted, touched=touched)
            before = self._all_models()
            self._staged = staged
            keys, names = {model.key for model in served}, {model.name for model in served}
            self._leaving = frozenset(
                model
                for model in self._registry.models()
                if model.key not in keys and model.name in names and model.dense.instance is not None
            )
            self._replace([*served, *self._still_serving(served)], instead_of=before)
            for model in served:
                self._publish(model)
            if self._running is not None and not self._is_wanted(self._running[0]):
                self._running[1].set()
            self._has_work = True
            self._changed.notify_all()
            return self._all_models()

    def _replace(self, models: Iterable[Model], *, instead_of: Iterable[Model]) -> None:
        """Have other models in the registry, and let go of those that are no longer anywhere."""
        self._registry.replace(models)
        present = set(self._all_models())
        for model in instead_of:
            if model not in present:
                self._take_out(model)

    def _still_serving(self, wanted: Iterable[Model]) -> list[Model]:
        """Return the versions that are not wanted, but serve until one that is wanted is complete."""
        complete = {model.name for model in wanted if model.is_ready and model.is_settled}
        self._leaving = frozenset(model for model in self._leaving if model.name not in complete)
        return [model for model in self._registry.models() if model in self._leaving]

    def _revised(self, model: Model, wanted: Model, *, touched: Collection[tuple[str, str, str]]) -> Model:
        changed = {
            tier for tier in wanted.config.tiers if (*model.key, tier) in touched or _has_failed(model.pending(tier))
        }
        gone = model.revise(wanted.config, default_tier=wanted.default_tier, priority=wanted.priority, changed=changed)
        self._retire_later(gone, model=model)
        return model

    def _is_wanted(self, task: Task) -> bool:
        """Tell whether a build in progress is still for something; its result is for nothing otherwise."""
        pending = task.model.pending(task.tier) if task.model in self._wanted_models() else None
        return pending is not None and pending.revision == task.revision

    def _take_out(self, model: Model) -> None:
        """Let go of a model that is not, or no longer, in the registry."""
        instances = [each.instance for each in model.variants.values() if each.instance is not None]
        self._retire_later(instances, model=model)
        if all(each.key != model.key for each in self._registry.models()):
            self._reporter.retract(model)

    def _retire_later(self, instances: Sequence[Instance], *, model: Model) -> None:
        """Retire what is out of the registry when the requests that had found it there hold it, or are over."""
        if not instances:
            return

        def retire() -> None:
            retiring = self._retiring.pop(timer, ())
            if self._is_awaited(model):
                self._retire_later(retiring, model=model)
                return
            for instance in retiring:
                instance.retire()

        timer = threading.Timer(self._grace_seconds, retire)
        timer.daemon = True
        self._retiring[timer] = tuple(instances)
        timer.start()

    def _publish(self, model: Model) -> None:
        for tier in model.variants:
            self._reporter.publish(model, tier)

    def cancel_builds(self) -> None:
        """Ask a running build to end and begin no other; does not wait."""
        with self._changed:
            self._stopped.set()
            if self._running is not None:
                self._running[1].set()
            self._changed.notify_all()

    def stop(self, *, timeout_seconds: float) -> bool:
        """End a running build, and take every instance out of service; idempotent.

        Returns:
            Whether the build, or the load of an artifact, ended in time.
        """
        self.cancel_builds()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        for timer in list(self._retiring):
            timer.cancel()
            for instance in self._retiring.pop(timer, ()):
                instance.retire()
        for model in self._all_models():
            for variant in model.variants.values():
                if variant.instance is not None:
                    variant.instance.retire()
        return not self._thread.is_alive()

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Wait until everything serves, was refused or failed; return whether that happened in time."""
        with self._changed:
            return self._changed.wait_for(self._is_settled, timeout_seconds)

    def wait_for(self, condition: Callable[[list[dict[str, Any]]], bool], timeout_seconds: float) -> bool:
        """Wait until `all_tiers` is such; return whether that happened in time."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.all_tiers()), timeout_seconds)

    def _is_settled(self) -> bool:
        return all(model.is_settled for model in self._wanted_models())

    def index(self, *, ready_only: bool = False) -> list[RepositoryEntry]:
        """Return a line for each version of each model, and for each of its tiers under its qualified name."""
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
        if ready_only:
            return [entry for entry in entries if entry.state is ModelState.READY]
        unloaded = self._unloaded().items()
        return entries + [RepositoryEntry(name, "", ModelState.UNAVAILABLE, reason) for name, reason in unloaded]

    def tiers(self, name: str, *, version: str | None = None) -> dict[str, Any]:
        """Return how the tiers of a model stand, ready for JSON.

        Args:
            name: Of the model.
            version: Default: the one that requests get which name none.

        Raises:
            NotFound: No such model, or not in that version.
        """
        return self.describe(self._registry.get(split_name(name)[0], version=version))

    def all_tiers(self) -> list[dict[str, Any]]:
        """Return how the tiers of all versions of all models stand, ready for JSON."""
        return [self.describe(model) for model in self._registry.models()]

    def describe(self, model: Model) -> dict[str, Any]:
        """Return how a version of a model and its tiers stand, ready for JSON."""
        successor = self._successor(model)
        return {
            **describe_model(model),
            "adaptive": self._adaptive_state(model),
            "successor": describe_model(successor) if successor is not None else None,
        }

    def _successor(self, model: Model) -> Model | None:
        """Return what is to take the place of a model, if anything is."""
        if model not in self._leaving:
            return self._staged.get(model.key)
        others = [other for other in self._registry.versions(model.name) if other not in self._leaving]
        return others[-1] if others else None

    def _work(self) -> None:
        while True:
            with self._changed:
                patience = _AGAIN_SECONDS if self._postponed else None
                self._changed.wait_for(lambda: self._has_work or self._stopped.is_set(), patience)
                if self._stopped.is_set():
                    return
                self._has_work = False
            self._postponed = set()
            if all(self._take_step(*step) for step in self._steps()) and not self._postponed:
                self._on_settled()

    def _steps(self) -> Iterable[tuple[Model, str, bool]]:
        """Return what is to be looked up, and then built, in order: model, tier, and whether to build."""
        models = _highest_first(self._wanted_models())
        for model in models:
            yield model, DENSE, False
        # A build of another model may wait long, as for a store that cannot be reached.
        cached = [model for model in models if _is_settled(model.pending(DENSE))]
        for model in cached:
            for tier in _compressed(model):
                yield model, tier, False
        for model in models:
            yield model, DENSE, True
            if model not in cached:
                for tier in _compressed(model):
                    yield model, tier, False
        for model in models:
            for tier in _compressed(model):
                yield model, tier, True

    def _take_step(self, model: Model, tier: str, builds: bool) -> bool:
        """Take a step with a variant that is not settled; return whether to go on, and not to begin anew."""
        with self._changed:
            pending = model.pending(tier) if model in self._wanted_models() else None
            waits = not self._postponed.isdisjoint({(model, tier), (model, DENSE)})
            if pending is not None and not pending.state.is_settled and not waits and not self._stopped.is_set():
                task = Task(model, tier, pending.revision, model.config, self._profiles.get(tier))
                cancelled = threading.Event()
                self._running = (task, cancelled)
        if self._running is not None:
            again = self._bring_up.build(task, cancelled=cancelled) if builds else self._bring_up.find(task)
            if again:
                self._postponed.add((model, tier))
        with self._changed:
            if model.is_settled:
                self._hand_over(model, has_tried=self._running is not None)
            self._running = None
            if model not in self._all_models():
                # What was loaded while it was taken out.
                self._take_out(model)
            return not (self._has_work or self._stopped.is_set())

    def _hand_over(self, model: Model, *, has_tried: bool) -> None:
        """Let a model that has settled take the place of another one, if it is to."""
        if model not in self._wanted_models():
            return
        is_staged = self._staged.get(model.key) is model
        if not is_staged and all(leaving.name != model.name for leaving in self._leaving):
            return
        if not model.is_ready:
            if has_tried:
                _log.error("%s: version %s does not take over: %s", *model.key, "; ".join(model.dense.reasons))
            return
        before = self._all_models()
        models = {one.key: one for one in self._registry.models() if one not in self._leaving}
        if is_staged:
            self._staged = {key: one for key, one in self._staged.items() if one is not model}
            models[model.key] = model
        self._replace([*models.values(), *self._still_serving(models.values())], instead_of=before)
        if is_staged:
            self._publish(model)
        self._changed.notify_all()
        _log.info("%s: version %s has taken over", *model.key)

    def _all_models(self) -> list[Model]:
        return [*self._registry.models(), *self._staged.values()]

    def _wanted_models(self) -> list[Model]:
        return [model for model in self._all_models() if model not in self._leaving]

    def _show(self, model: Model, tier: str) -> None:
        with self._changed:
            if self._registry.find(*model.key) is model:
                self._reporter.publish(model, tier)
                self._registry.refresh()
            self._changed.notify_all()


def _is_settled(variant: Variant | None) -> bool:
    return variant is None or variant.state.is_settled


def _has_failed(variant: Variant | None) -> bool:
    return variant is not None and variant.state is VariantState.FAILED


def _compressed(model: Model) -> list[str]:
    return [tier for tier in model.variants if tier != DENSE]


def _highest_first(models: Iterable[Model]) -> list[Model]:
    """Return models in the order of their names, of each the highest version first."""
    by_name: dict[str, list[Model]] = {}
    for model in models:
        by_name.setdefault(model.name, []).append(model)
    return [
        model
        for each in by_name.values()
        for model in sorted(each, key=lambda model: version_order(model.version), reverse=True)
    ]


def _same_graph(one: Model, other: Model) -> bool:
    """Tell whether two models have the same dense graph, answers, and what becomes of texts and images."""
    return one.content == other.content and all(
        getattr(one.config, name) == getattr(other.config, name) for name in _OF_THE_GRAPH
    )


_MODEL_STATES = {
    VariantState.WAITING: ModelState.LOADING,
    VariantState.BUILDING: ModelState.LOADING,
    VariantState.READY: ModelState.READY,
    VariantState.REFUSED: ModelState.UNAVAILABLE,
    VariantState.FAILED: ModelState.UNAVAILABLE,
}
