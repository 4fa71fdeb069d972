"""An artifact's life, from the request to the store, top to bottom."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.environment import environment
from serveprune.artifacts.graph_file import copy_graph, plain_graph, store_graph
from serveprune.artifacts.integrity import file_records
from serveprune.artifacts.key import artifact_key, dense_key, source_recipe, tier_packages, tier_recipe
from serveprune.artifacts.lease import Lease
from serveprune.artifacts.manifest import GRAPH_FILE, Manifest
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.compression.calibration import BuildSamples, samples_of, task_of
from serveprune.compression.measuring import BACKEND_CHOICES, measure_tier
from serveprune.compression.pass_sequence import apply_passes
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.errors import FailedPrecondition, NotFound, Unavailable
from serveprune.evaluation.choice import choose
from serveprune.graph.footprint import graph_record
from serveprune.graph.importing import import_model

# Where each part of a tier's build ends, as a fraction of the whole.
_IMPORTED, _COMPRESSED, _MEASURED = 0.3, 0.6, 0.97


def build(
    request: BuildRequest,
    *,
    store: ArtifactStore,
    threads: int,
    threads_of_serving: int,
    on_progress: Callable[[BuildProgress], None],
) -> BuildResult:
    """Make the artifact that a request asks for, or find it in the store.

    Args:
        request: A model, and the profile to apply to it; none asks for the imported graph itself.
        store: Where artifacts are found and put.
        threads: Compute threads of the import and the passes.
        threads_of_serving: Threads of one batch in serving; latency is measured with them.
        on_progress: Called on this thread.

    Raises:
        InvalidArgument: What was given can never be built.
        BuildFailed: A pass could not do its work.
        ResourceExhausted: The disk is full; the store is as it was.
    """
    return _Build(request, store, threads, threads_of_serving, on_progress).run()


@dataclass(frozen=True, slots=True)
class _Build:
    request: BuildRequest
    store: ArtifactStore
    threads: int
    threads_of_serving: int
    on_progress: Callable[[BuildProgress], None]

    def run(self) -> BuildResult:
        started = time.monotonic()
        profile = self.request.profile
        dense, found = self._obtain_dense(share=1.0 if profile is None else _IMPORTED)
        artifact = dense
        reasons: tuple[str, ...] = ()
        if profile is not None:
            with self._leased(dense):
                artifact, found = self._obtain_tier(dense, profile)
            # The gate is judged at every use, so a changed gate needs no new build.
            reasons = choose(artifact.manifest.all_measurements, profile.gate).reasons
        self._report("done", 1.0)
        outcome = BuildOutcome.REFUSED if reasons else BuildOutcome.CACHED if found else BuildOutcome.BUILT
        return BuildResult(outcome, key=artifact.key, reasons=reasons, seconds=time.monotonic() - started)

    def _leased(self, dense: Artifact) -> Lease:
        """Keep the dense graph from being evicted while a tier is made from it."""
        try:
            return self.store.lease(dense.key)
        except NotFound as error:
            raise Unavailable(
                f"the dense graph was evicted as soon as it was found; raise store.max_bytes: {error.message}"
            ) from error

    def _obtain_dense(self, *, share: float) -> tuple[Artifact, bool]:
        """Return the imported graph and whether it was there already; ``share`` is this part of the build."""
        self._report("looking in the store", 0.0)
        recipe = source_recipe(self.request.model)
        if found := dense_of(self.store, self.request.model):
            return found, True
        # Only one process imports; the others find what it left.
        with self.store.single_flight(f"import-{recipe}"):
            if found := dense_of(self.store, self.request.model):
                return found, True
            return self._import(recipe, share), False

    def _import(self, recipe: str, share: float) -> Artifact:
        started = time.monotonic()
        model = self.request.model
        with self.store.staging() as folder:
            imported = import_model(
                model,
                folder=folder,
                progress=lambda message, fraction: self._report("importing", share * fraction, message),
            )
            files = file_records(folder)
            manifest = Manifest(
                kind="dense",
                key=dense_key(files, preprocessing=imported.preprocessing),
                recipe=recipe,
                environment=environment(),
                created=_now(),
                model=self.request.model_name,
                source=model.source.model_dump(mode="json"),
                graph=imported.graph,
                files=files,
                seconds=time.monotonic() - started,
                preprocessing=imported.preprocessing,
                parity_max_abs_error=imported.parity_max_abs_error,
                notes=imported.notes,
            )
            if source_recipe(model) != recipe:
                # The record would say for good that these files give another model's graph.
                named = next(iter(model.source.model_dump(mode="json").values()))
                raise FailedPrecondition(
                    f"{named} (or a file that it needs) changed while it was being read; try again"
                )
            artifact = self.store.commit(folder, manifest)
        self.store.record_import(recipe, artifact.key)
        return artifact

    def _obtain_tier(self, dense: Artifact, profile: ProfileConfig) -> tuple[Artifact, bool]:
        """Return what the profile makes of the dense graph, refused or not, and whether it was there already."""
        recipe = self._tier_recipe(dense, profile)
        if found := self._find(recipe, profile):
            return found, True
        with self.store.single_flight(f"tier-{recipe}"):
            if found := self._find(recipe, profile):
                return found, True
            return self._compress(dense, profile, recipe), False

    def _compress(self, dense: Artifact, profile: ProfileConfig, recipe: str) -> Artifact:
        started = time.monotonic()
        samples = self._load_samples(dense)
        begun, remaining = self._longest_beginning(dense, profile)
        # Intermediate files have a folder of their own, on the same disk and removed the same way.
        with self.store.lease(begun.key), self.store.staging() as folder, self.store.staging() as workspace:
            graph = folder / GRAPH_FILE
            for name in (name for step in begun.manifest.passes for name in step.files):
                shutil.copyfile(begun.folder / name, folder / name)
            beginning = plain_graph(begun.graph, folder=workspace)
            if not remaining.passes:
                copy_graph(beginning, graph)
            passes = apply_passes(
                remaining,
                beginning,
                output=graph,
                dense=dense.graph,
                model_name=self.request.model_name,
                task=task_of(dense, self.request.model, samples),
                samples=samples,
                workspace=workspace,
                cpu=environment()["cpu"],
                threads=self.threads,
                serving_threads=self.threads_of_serving,
                cache=self.store.pass_cache,
                on_progress=self._part(_IMPORTED, _COMPRESSED),
            )
            # From here on it is what will be served, as it will lie on the disk.
            graph = store_graph(graph)
            measured = measure_tier(
                dense,
                graph,
                model=self.request.model,
                samples=samples,
                threads=self.threads_of_serving,
                on_progress=self._part(_COMPRESSED, _MEASURED),
            )
            self._report("storing", _MEASURED)
            made_in = environment(tier_packages(self.request.model, profile))
            manifest = Manifest(
                kind="tier",
                key=artifact_key(recipe, made_in),
                recipe=recipe,
                environment=made_in,
                created=_now(),
                model=self.request.model_name,
                source=self.request.model.source.model_dump(mode="json"),
                graph=graph_record(graph),
                files=file_records(folder),
                seconds=time.monotonic() - started,
                dense_key=dense.key,
                passes=(*begun.manifest.passes, *passes),
                measurements=measured.found[0],
                further_measurements=measured.found[1:],
                unmeasured_backends=measured.unmeasured,
            )
            if self._tier_recipe(dense, profile) != recipe:
                sets = (self.request.model.calibration, self.request.model.evaluation)
                named = " or ".join(str(each.file) for each in sets if each is not None)
                raise FailedPrecondition(
                    f"{named} (or a file that it names) changed while it was being read; try again"
                )
            # A tier that its gate refuses is kept too, so that it is not built again and people can look at it.
            return self.store.commit(folder, manifest)

    def _longest_beginning(self, dense: Artifact, profile: ProfileConfig) -> tuple[Artifact, ProfileConfig]:
        """Return the artifact that shares the most first passes with this profile, and the passes still to do.

        Passes do not know what will run their graph. So if a tier of another backend has them all, none is to do.
        """
        for count in range(len(profile.passes), 0, -1):
            beginning = profile.model_copy(update={"passes": profile.passes[:count]})
            for backend in BACKEND_CHOICES:
                model = self.request.model.model_copy(update={"backend": backend})
                found = self._find(self._tier_recipe(dense, beginning, model), beginning, model)
                if found is not None:
                    return found, profile.model_copy(update={"passes": profile.passes[count:]})
        return dense, profile

    def _find(self, recipe: str, profile: ProfileConfig, model: ModelConfig | None = None) -> Artifact | None:
        packages = tier_packages(model or self.request.model, profile)
        return self.store.find_tier(recipe, extra_packages=packages)

    def _tier_recipe(self, dense: Artifact, profile: ProfileConfig, model: ModelConfig | None = None) -> str:
        return tier_recipe(dense.key, model or self.request.model, profile, threads=self.threads_of_serving)

    def _load_samples(self, dense: Artifact) -> BuildSamples:
        self._report("reading samples", _IMPORTED)
        return samples_of(dense, self.request.model)

    def _part(self, start: float, end: float) -> Callable[..., None]:
        """Return what takes a stage of one part, how much of that part is done, and perhaps a message."""
        return lambda stage, fraction, message="": self._report(stage, start + (end - start) * fraction, message)

    def _report(self, stage: str, fraction: float, message: str = "") -> None:
        self.on_progress(BuildProgress(stage, fraction, message))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
