"""A profile's passes, one after the other."""

import time
from collections.abc import Callable
from pathlib import Path

from serveprune.artifacts.manifest import GRAPH_FILE, PassRecord
from serveprune.compression.calibration import BuildSamples
from serveprune.compression.passes import PassContext, apply_pass
from serveprune.config.profile import ProfileConfig

SEED = 0
"""Of every random choice of a build; a plan has to make the same ones."""


def apply_passes(
    profile: ProfileConfig,
    graph: Path,
    *,
    output: Path,
    samples: BuildSamples,
    workspace: Path,
    cpu: str,
    threads: int,
    serving_threads: int,
    cache: Path | None,
    on_progress: Callable[[str, float], None],
) -> tuple[PassRecord, ...]:
    """Run the passes in order, each on what the one before left; the last one writes ``output``.

    Args:
        profile: Names the passes and their options.
        graph: The ONNX file to begin with; it is not changed.
        output: Where the result goes.
        samples: Their calibration part is what passes may learn from.
        workspace: Folder for what lies between.
        cpu: Architecture and features of this machine.
        threads: Compute threads a pass may use.
        serving_threads: Threads of one batch in serving.
        cache: Folder for what passes of several tiers share.
        on_progress: Takes the name of the pass and the fraction done of all passes.

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
        context = PassContext(
            options=step.options,
            calibration=samples.calibration,
            cpu=cpu,
            threads=threads,
            seed=SEED,
            workspace=own,
            progress=_reporter(on_progress, step.name, index=index, count=count),
            serving_threads=serving_threads,
            cache=cache,
        )
        context.progress(0.0)
        report = apply_pass(step.name, graph, output=written, context=context)
        records.append(
            PassRecord(
                name=step.name,
                revision=step.options.revision,
                options=step.options.model_dump(mode="json"),
                report=report.findings,
                seconds=time.monotonic() - started,
            )
        )
        graph = written
    return tuple(records)


def _reporter(
    on_progress: Callable[[str, float], None], name: str, *, index: int, count: int
) -> Callable[[float], None]:
    return lambda fraction: on_progress(name, (index + fraction) / count)
