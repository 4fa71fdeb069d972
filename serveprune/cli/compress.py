"""`serveprune compress`: make one tier of one model, from a shell or a script."""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serveprune.artifacts.builder import BuildOutcome, BuildRequest, BuildResult
from serveprune.artifacts.manifest import MANIFEST_FILE
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.cli.compress_target import SourceFlags, Target, resolve_target
from serveprune.cli.console import progress_console, progress_display
from serveprune.compression.child import SubprocessBuilder
from serveprune.config.model import DatasetConfig
from serveprune.errors import Code, ServePruneError
from serveprune.evaluation.report import measurement_rows

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130

_BAD_INPUT = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION}

Task = Literal["feature-extraction", "sequence-classification", "image-classification"]
Pooling = Literal["mean", "cls", "max", "none"]


def compress(
    model: Annotated[str, typer.Argument(help="Name of a model in the config, or an .onnx, .pt2 or model folder.")],
    profile: Annotated[str, typer.Option(help="Name of a profile, or a YAML file that holds one.")],
    config: Annotated[
        Path | None, typer.Option(help="Configuration. Default: serveprune.yaml, if MODEL is no path.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Unlabelled inputs to learn from (.npz or .jsonl).")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Held-out inputs to judge on (.npz or .jsonl).")] = None,
    out: Annotated[Path | None, typer.Option(help="Copy the graph and its manifest into this folder.")] = None,
    store: Annotated[Path | None, typer.Option(help="Artifact store. Default: the config's.")] = None,
    task: Annotated[Task | None, typer.Option(help="Of a model folder. Default: what its config.json says.")] = None,
    pooling: Annotated[Pooling, typer.Option(help="Of a model folder: token vectors to one vector.")] = "none",
    normalize: Annotated[bool, typer.Option(help="Of a model folder: scale the vector to length 1.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Build a tier: compress a model, measure it against dense on this machine, and judge it.

    Exit status: 0 built or found in the store, 2 bad input, 3 refused by the gate, 1 any other failure,
    130 interrupted.
    """
    try:
        target = resolve_target(
            model, profile=profile, config=config, store=store, flags=SourceFlags(task, pooling, normalize)
        )
        target = _with_samples(target, calibration=calibration, evaluation=evaluation)
        with _interruption() as interrupted:
            result = _build(target, interrupted)
        artifacts = ArtifactStore(target.store.path, max_bytes=target.store.max_bytes)
        tier = artifacts.open(result.key) if result.key else None
        dense = artifacts.open(tier.manifest.dense_key) if tier and tier.manifest.dense_key else None
        if out is not None and tier is not None and result.outcome is not BuildOutcome.REFUSED:
            _copy(tier, out)
    except ServePruneError as error:
        if not as_json:
            raise
        bad_input = error.code in _BAD_INPUT
        failure = BuildResult(BuildOutcome.FAILED, reasons=(error.message,), bad_input=bad_input)
        print(json.dumps(report(failure, tier=None, dense=None)))
        raise typer.Exit(EXIT_BAD_INPUT if bad_input else EXIT_FAILURE) from error
    if as_json:
        print(json.dumps(report(result, tier=tier, dense=dense)))
    else:
        _show(result, tier=tier, dense=dense)
    stopped = interrupted.is_set() and result.outcome is BuildOutcome.FAILED
    raise typer.Exit(EXIT_INTERRUPTED if stopped else exit_status(result))


def exit_status(result: BuildResult) -> int:
    """Return what a shell is told about a build."""
    match result.outcome:
        case BuildOutcome.BUILT | BuildOutcome.CACHED:
            return 0
        case BuildOutcome.REFUSED:
            return EXIT_REFUSED
        case BuildOutcome.FAILED:
            return EXIT_BAD_INPUT if result.bad_input else EXIT_FAILURE


def report(result: BuildResult, *, tier: Artifact | None, dense: Artifact | None) -> dict[str, Any]:
    """Return the JSON object that describes a build; what was not measured is null."""
    measured = tier.manifest.measurements if tier else None
    return {
        "outcome": str(result.outcome),
        "reasons": list(result.reasons),
        "metric": measured.metric if measured else None,
        "quality": dict(measured.quality) if measured else None,
        "dense_quality": dict(measured.dense_quality) if measured else None,
        "batch_deviation": measured.batch_deviation if measured else None,
        "evaluation_set": measured.evaluation_set if measured else None,
        "speedup": measured.latency.speedup if measured else None,
        "latency_ms": {"dense": measured.latency.dense_ms, "tier": measured.latency.tier_ms} if measured else None,
        "bytes": {"dense": measured.dense_bytes, "tier": measured.tier_bytes} if measured else None,
        "parameters": {
            "dense": dense.manifest.graph.parameters if dense else None,
            "tier": tier.manifest.graph.parameters if tier else None,
        },
        "artifact": str(tier.folder) if tier else None,
        "seconds": result.seconds,
        "log": str(result.log) if result.log else None,
    }


def _build(target: Target, interrupted: Event) -> BuildResult:
    builder = SubprocessBuilder(target.store, target.builds, threads_of_serving=target.threads_of_serving)
    request = BuildRequest(model_name=target.name, model=target.model, tier=target.tier, profile=target.profile)
    name = f"{target.name}@{target.tier}"
    with progress_display(progress_console()) as display:
        result = builder.build(
            request, on_progress=lambda progress: display.update(name, progress), cancelled=interrupted
        )
        display.finish(name, f"{result.outcome} in {result.seconds:.1f} s")
    return result


@contextmanager
def _interruption() -> Iterator[Event]:
    """Give an event that Ctrl-C and SIGTERM set, so that the child ends cleanly before this process does."""
    interrupted = Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_samples(target: Target, *, calibration: Path | None, evaluation: Path | None) -> Target:
    given = {
        role: DatasetConfig(file=file.absolute(), samples=None)
        for role, file in (("calibration", calibration), ("evaluation", evaluation))
        if file is not None
    }
    return target.with_model(target.model.model_copy(update=given))


def _copy(tier: Artifact, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in (*tier.manifest.files, MANIFEST_FILE):
        shutil.copyfile(tier.folder / name, out / name)


def _show(result: BuildResult, *, tier: Artifact | None, dense: Artifact | None) -> None:
    console = Console(highlight=False)
    measured = tier.manifest.measurements if tier else None
    if measured and tier:
        table = Table(show_header=False)
        for label, text in measurement_rows(measured):
            table.add_row(label, escape(text))
        parameters = f" (dense {dense.manifest.graph.parameters:,})" if dense else ""
        table.add_row("parameters", f"{tier.manifest.graph.parameters:,}{parameters}")
        console.print(table)
        console.print(f"artifact {tier.folder}", markup=False, soft_wrap=True)
    errors = progress_console()
    for reason in result.reasons:
        errors.print(f"{result.outcome}: {reason}", markup=False, soft_wrap=True)
    if result.log:
        errors.print(f"log: {result.log}", markup=False, soft_wrap=True)
