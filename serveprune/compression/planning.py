"""What a profile's `prune` pass would do to a model, found out the way a build does, with nothing cut."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from serveprune.artifacts.builder import BuildProgress, BuildRequest
from serveprune.artifacts.environment import environment
from serveprune.artifacts.manifest import GRAPH_FILE
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.compression.build import build
from serveprune.compression.calibration import BuildSamples, samples_of, task_of
from serveprune.compression.pass_sequence import SEED, apply_passes
from serveprune.compression.plan_report import (
    CoupledAxis,
    PinnedWeight,
    PlannedBlock,
    PlannedGroup,
    PlanReport,
    Prediction,
    WholeGroup,
    layer_label,
)
from serveprune.compression.pruning.dependency_graph import PruningGroup
from serveprune.compression.pruning.learning_samples import learned_from, learning_samples, noise_warnings
from serveprune.compression.pruning.plan import Plan
from serveprune.compression.pruning.pruning import Pruning
from serveprune.config.model import DENSE
from serveprune.config.profile import PassConfig, ProfileConfig
from serveprune.config.pruning import PruneOptions
from serveprune.errors import InvalidArgument, Unavailable
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.task import Task

_IMPORTED, _READ = 0.3, 0.4


def plan_tier(
    request: BuildRequest,
    *,
    store: ArtifactStore,
    threads: int,
    threads_of_serving: int,
    on_progress: Callable[[BuildProgress], None],
) -> PlanReport:
    """Say what the first `prune` pass of a profile would do; what is measured for that is kept for the build.

    Args:
        request: A model, and a profile with a `prune` pass.
        store: Where the dense graph is found or put, and what passes share is kept.
        threads: Compute threads.
        threads_of_serving: Threads of one batch in serving; latency is measured with them.
        on_progress: Called on this thread.

    Raises:
        InvalidArgument: There is no such pass, no calibration set, nothing to prune, or the target is out of reach.
    """
    return _Planning(request, store, threads, threads_of_serving, on_progress).run()


@dataclass(frozen=True, slots=True)
class _Planning:
    request: BuildRequest
    store: ArtifactStore
    threads: int
    threads_of_serving: int
    on_progress: Callable[[BuildProgress], None]

    def run(self) -> PlanReport:
        earlier, options = self._step()
        dense_request = self.request.model_copy(update={"tier": DENSE, "profile": None})
        imported = build(
            dense_request,
            store=self.store,
            threads=self.threads,
            threads_of_serving=self.threads_of_serving,
            on_progress=self._importing,
        )
        assert imported.key is not None
        with self.store.lease(imported.key), self.store.staging() as workspace:
            dense = self.store.open(imported.key)
            if dense is None:
                raise Unavailable("the dense graph was evicted as soon as it was found; raise store.max_bytes")
            samples = self._samples(dense)
            graph = dense.graph if earlier is None else self._apply(earlier, dense, samples, workspace)
            task = task_of(dense, self.request.model, samples)
            return self._plan(graph, options, samples, workspace, task=task)

    def _step(self) -> tuple[ProfileConfig | None, PruneOptions]:
        """Return what the profile does before its first `prune`, if anything, and the options of that pass."""
        profile, model = self.request.profile, self.request.model
        for place, step in enumerate(profile.passes if profile is not None else ()):
            # Single weights go where they are; there is nothing to plan.
            if profile is not None and isinstance(step.prune, PruneOptions):
                if model.calibration is None and step.prune.synthetic_samples is None:
                    raise InvalidArgument(
                        "prune: expected unlabelled samples to learn from, got none; set "
                        f"models.{self.request.model_name}.calibration.file (for the command line: --calibration)"
                    )
                earlier = profile.model_copy(update={"passes": profile.passes[:place]}) if place else None
                return earlier, step.prune
        names = ", ".join(map(_described, profile.passes)) if profile is not None else "none"
        raise InvalidArgument(f"expected a profile with a `prune` pass; the passes of {self.request.tier} are: {names}")

    def _place(self, options: PruneOptions) -> int:
        assert self.request.profile is not None
        return next(index for index, step in enumerate(self.request.profile.passes) if step.prune is options)

    def _importing(self, progress: BuildProgress) -> None:
        if progress.fraction < 1:  # the end of the import is not the end
            self.on_progress(replace(progress, fraction=progress.fraction * _IMPORTED))

    def _samples(self, dense: Artifact) -> BuildSamples:
        self.on_progress(BuildProgress("reading samples", _IMPORTED))
        return samples_of(dense, self.request.model)

    def _apply(self, earlier: ProfileConfig, dense: Artifact, samples: BuildSamples, workspace: Path) -> Path:
        """Apply the passes before the one that is planned, for it works on what they leave."""
        folder = workspace / "earlier"
        folder.mkdir()
        apply_passes(
            earlier,
            dense.graph,
            output=folder / GRAPH_FILE,
            dense=dense.graph,
            model_name=self.request.model_name,
            task=task_of(dense, self.request.model, samples),
            samples=samples,
            workspace=folder,
            cpu=environment()["cpu"],
            threads=self.threads,
            serving_threads=self.threads_of_serving,
            cache=self.store.pass_cache,
            on_progress=lambda stage, _fraction, message: self.on_progress(BuildProgress(stage, _IMPORTED, message)),
        )
        return folder / GRAPH_FILE

    def _plan(
        self, graph: Path, options: PruneOptions, samples: BuildSamples, workspace: Path, *, task: Task
    ) -> PlanReport:
        self.on_progress(BuildProgress("reading the graph", _IMPORTED))
        learning = learning_samples(samples.calibration, options, graph=graph, seed=SEED)
        pruning = Pruning(
            graph,
            options,
            samples=learning,
            workspace=workspace,
            threads=self.threads,
            serving_threads=self.threads_of_serving,
            cache=self.store.pass_cache,
            seed=SEED,
            task=task,
            model_name=self.request.model_name,
        )
        self.on_progress(BuildProgress("planning", _READ))
        share = 1 - _READ
        plan = pruning.plan(progress=lambda done: self.on_progress(BuildProgress("planning", _READ + share * done)))
        return self._report(pruning, plan, options, samples=len(learning), calibration=samples.calibration)

    def _report(
        self, pruning: Pruning, plan: Plan, options: PruneOptions, *, samples: int, calibration: Dataset | None
    ) -> PlanReport:
        found = {group.name: group for group in pruning.graph.groups}
        groups = tuple(
            PlannedGroup(
                name=group.name,
                label=layer_label(group.name, _coupled(found[group.name])),
                kind=group.kind,
                before=group.before,
                after=group.after,
                error=group.error,
                saved_ms=group.saved_ms,
                coupled=_coupled(found[group.name]),
            )
            for group in plan.groups
        )
        order = [group.name for group in groups]
        blocks = tuple(
            PlannedBlock(
                name=name, removed=name in plan.removed_blocks, error=pruning.block_errors[name], groups=inside
            )
            for name, inside in sorted(
                ((block, pruning.scope.groups_inside(block)) for block in pruning.scope.blocks),
                key=lambda item: min(map(order.index, item[1])),
            )
        )
        lost = [group.error for group in groups if group.after] + [block.error for block in blocks if block.removed]
        profile = self.request.profile
        assert profile is not None
        passes = tuple(step.name for step in profile.passes)
        return PlanReport(
            model=self.request.model_name,
            tier=self.request.tier,
            passes=passes,
            planned_pass=self._place(options) + 1,
            target={options.target.kind: options.target.value},
            structure=options.structure,
            importance=options.importance,
            batch_size=pruning.batch_size,
            threads=self.threads_of_serving,
            calibration_samples=samples,
            learned_from=learned_from(calibration),
            predicted=Prediction(
                unit=plan.predicted["unit"],
                before=plan.predicted["before"],
                after=plan.predicted["after"],
            ),
            error=sum(lost),
            groups=groups,
            blocks=blocks,
            left_whole=_left_whole(pruning),
            pinned=tuple(
                PinnedWeight(weight=axis.name, axis=axis.axis, width=axis.width, reason=axis.reason)
                for axis in pruning.graph.pinned
            ),
            not_understood=plan.unknown_operators,
            warnings=(*noise_warnings(calibration, options), *pruning.warnings),
        )


def _described(step: PassConfig) -> str:
    return "prune of weights, which leaves nothing to plan" if step.prune is not None else step.name


def _left_whole(pruning: Pruning) -> tuple[WholeGroup, ...]:
    found = []
    for group in pruning.graph.groups:
        reason = pruning.scope.why_left_out(group)
        if reason is not None:
            coupled = _coupled(group)
            found.append(
                WholeGroup(
                    name=group.name,
                    label=layer_label(group.name, coupled),
                    kind=group.kind,
                    width=group.width,
                    reason=reason,
                    coupled=coupled,
                )
            )
    return tuple(found)


def _coupled(group: PruningGroup) -> tuple[CoupledAxis, ...]:
    return tuple(
        CoupledAxis(weight=piece.name, axis=piece.axis, positions_per_unit=piece.positions.shape[1])
        for piece in group.slices
    )
