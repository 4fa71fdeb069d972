"""A profile's passes, one after the other."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from serveprune.artifacts.manifest import GRAPH_FILE, PassRecord
from serveprune.compression.calibration import BuildSamples
from serveprune.compression.passes import PassContext, apply_pass
from serveprune.config.profile import ProfileConfig
from serveprune.evaluation.task import Task

SEED = 0
"""Of every random choice of a build; a plan has to make the same ones."""


def apply_passes(
    profile: ProfileConfig,
    graph: Path,
    *,
    output: Path,
    dense: Path,
    model_name: str,
    task: Task,
    samples: BuildSamples,
    workspace: Path,
    cpu: str,
    threads: int,
    serving_threads: int,
    cache: Path | None,
    on_progress: Callable[[str, float, str], None],
) -> tuple[PassRecord, ...]:
    """Run the passes in order, each on what the one before left; the last one writes ``output``.

    Args:
        profile: Names the passes and their options.
        graph: The ONNX file to begin with; it is not changed.
        output: Where the result goes.
        dense: The imported graph, before any pass.
        model_name: Of the model, for messages.
        task: What the model's answers mean.
        samples: Their calibration part is what passes may learn from.
        workspace: Folder for what lies between.
        cpu: Architecture and features of this machine.
        threads: Compute threads a pass may use.
        serving_threads: Threads of one batch in serving.
        cache: Folder for what passes of several tiers share.
        on_progress: Takes the name of the pass, the fraction done of all passes, and what the pass says of itself.

    Raises:
        InvalidArgument: A pass cannot be applied to this graph with these options and samples.
        BuildFailed: A pass could not do its work, or changed nothing.
    """
    records = []
    count = len(profile.passes)
    for index, step in enumerate(profile.passes):
        started = time.monotonic()
        own = workspace / f"{index}-{step.name}"
        own.mkdir()
        written = output if index == count - 1 else own / GRAPH_FILE
        reporter = _Reporter(on_progress, step.name, index=index, count=count)
        context = PassContext(
            options=step.options,
            calibration=samples.calibration,
            cpu=cpu,
            threads=threads,
            seed=SEED,
            workspace=own,
            progress=reporter.progress,
            serving_threads=serving_threads,
            cache=cache,
            dense=dense,
            model_name=model_name,
            task=task,
            note=reporter.note,
        )
        context.progress(0.0)
        report = apply_pass(step.name, graph, output=written, context=context)
        for name in report.files if written != output else ():
            shutil.copyfile(written.with_name(name), output.with_name(name))
        records.append(
            PassRecord(
                name=step.name,
                revision=step.options.revision,
                options=step.options.model_dump(mode="json"),
                report=report.findings,
                seconds=time.monotonic() - started,
                files=report.files,
            )
        )
        graph = written
    return tuple(records)


class _Reporter:
    """Passes on how far one of several passes is, and what it says of itself."""

    def __init__(self, on_progress: Callable[[str, float, str], None], name: str, *, index: int, count: int) -> None:
        self._on_progress = on_progress
        self._name = name
        self._index = index
        self._count = count
        self._words = ""

    def progress(self, fraction: float) -> None:
        self._on_progress(self._name, (self._index + fraction) / self._count, self._words)

    def note(self, words: str) -> None:
        self._words = words
