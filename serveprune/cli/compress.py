"""`serveprune compress`: make one tier of one model, from a shell or a script."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serveprune.artifacts.builder import BuildOutcome, BuildResult
from serveprune.artifacts.manifest import MANIFEST_FILE, PassRecord
from serveprune.artifacts.store import Artifact
from serveprune.cli.compress_target import Pooling, SourceFlags, Target, TaskFlag, resolve_target, with_samples
from serveprune.cli.console import progress_console
from serveprune.cli.interruption import interruption
from serveprune.cli.tier_build import build_tier
from serveprune.errors import FailedPrecondition, InvalidArgument, ServePruneError
from serveprune.evaluation.choice import choose
from serveprune.evaluation.report import backend_rows, measurement_rows
from serveprune.serving.report import backends

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130

_MOST_NODES_SHOWN = 8


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
    task: Annotated[
        TaskFlag | None,
        typer.Option(
            help="What the answers mean (classification, embedding, generic), or what a model folder is for. "
            "Default: what the model tells."
        ),
    ] = None,
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
        target = with_samples(target, calibration=calibration, evaluation=evaluation)
        if out is not None:
            _check_writable(out)
        with interruption() as interrupted:
            result, artifacts = build_tier(target, interrupted)
        found = artifacts.open(result.key) if result.key else None
        tier = _as_served(found, target) if found else None
        dense = artifacts.open(tier.manifest.dense_key) if tier and tier.manifest.dense_key else None
        if out is not None and tier is not None and result.outcome is not BuildOutcome.REFUSED:
            _copy(tier, out)
    except ServePruneError as error:
        if not as_json:
            raise
        failure = BuildResult(BuildOutcome.FAILED, reasons=(error.message,), bad_input=error.is_bad_input)
        print(json.dumps(report(failure, tier=None, dense=None)))
        raise typer.Exit(EXIT_BAD_INPUT if error.is_bad_input else EXIT_FAILURE) from error
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
        "backend": measured.backend if measured else None,
        "backends": backends(tier.manifest) if tier else None,
        "metric": measured.metric if measured else None,
        "quality": dict(measured.quality) if measured else None,
        "dense_quality": dict(measured.dense_quality) if measured else None,
        "batch_deviation": measured.batch_deviation if measured else None,
        "samples": measured.samples if measured else None,
        "evaluation_set": measured.evaluation_set if measured else None,
        "speedup": measured.latency.speedup if measured else None,
        "speedup_low": measured.latency.speedup_low if measured else None,
        "speedup_high": measured.latency.speedup_high if measured else None,
        "batch_size": measured.latency.batch_size if measured else None,
        "threads": measured.latency.threads if measured else None,
        "latency_ms": {"dense": measured.latency.dense_ms, "tier": measured.latency.tier_ms} if measured else None,
        "bytes": {"dense": measured.dense_bytes, "tier": measured.tier_bytes} if measured else None,
        "parameters": {
            "dense": dense.manifest.graph.parameters if dense else None,
            "tier": tier.manifest.graph.parameters if tier else None,
        },
        "left_in_float": list(_left_in_float(tier)) if tier else None,
        "warnings": list(_warnings(tier)) if tier else None,
        "sparsity": [_sparsity(step) for step in _sparse_steps(tier)] if tier else None,
        "parity_max_abs_error": dense.manifest.parity_max_abs_error if dense else None,
        "notes": list(dense.manifest.notes) if dense else None,
        "artifact": str(tier.folder) if tier else None,
        "seconds": result.seconds,
        "log": str(result.log) if result.log else None,
    }


def _as_served(tier: Artifact, target: Target) -> Artifact:
    """Return the artifact with the figures of the backend first that its gate chooses."""
    passing = choose(tier.manifest.all_measurements, target.profile.gate).passing
    return replace(tier, manifest=tier.manifest.led_by(passing[0])) if passing else tier


def _check_writable(out: Path) -> None:
    """Find out before the build whether its result can be copied; what is made for that is removed again."""
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    try:
        with TemporaryDirectory(dir=nearest, prefix=".serveprune-"):
            pass
    except OSError as error:
        raise InvalidArgument(f"--out: expected a folder that can be written, got {out}: {error.strerror}") from error


def _copy(tier: Artifact, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (*tier.manifest.files, MANIFEST_FILE):
            shutil.copyfile(tier.folder / name, out / name)
    except OSError as error:
        raise FailedPrecondition(
            f"--out: {out} could not be written: {error.strerror}; the artifact itself is in {tier.folder}"
        ) from error


def _left_in_float(tier: Artifact) -> tuple[str, ...]:
    """Return the nodes that a pass found weights in and left in float."""
    return tuple(name for step in tier.manifest.passes for name in step.report.get("left_in_float", ()))


def _warnings(tier: Artifact) -> tuple[str, ...]:
    """Return what passes had to say about the samples they learned from."""
    return tuple(text for step in tier.manifest.passes for text in step.report.get("warnings", ()))


def _sparse_steps(tier: Artifact) -> tuple[PassRecord, ...]:
    """Return the passes that set single weights to zero."""
    return tuple(step for step in tier.manifest.passes if "sparsity" in step.report)


def _sparsity(step: PassRecord) -> dict[str, Any]:
    shown = ("sparsity", "sparsity_of_all_weights", "pattern", "removed_units", "layers", "runtime")
    return {name: step.report[name] for name in shown if name in step.report}


def _sparsity_text(step: PassRecord) -> str:
    """Say how many zeros a pass left, and what the runtime makes of them."""
    found = _sparsity(step)
    shares = [layer["sparsity"] for layer in found["layers"]]
    return (
        f"{found['sparsity']:.1%} of the weights of {len(shares)} layers are zero (by layer {min(shares):.1%} to "
        f"{max(shares):.1%}); {found['runtime']}"
    )


def _findings(tier: Artifact, dense: Artifact | None) -> Iterator[tuple[str, str]]:
    """Yield what import and passes found, as (label, text)."""
    yield from (("warning", text) for text in _warnings(tier))
    yield from (("sparsity", _sparsity_text(step)) for step in _sparse_steps(tier))
    left = _left_in_float(tier)
    if left:
        more = f" and {len(left) - _MOST_NODES_SHOWN} more" if len(left) > _MOST_NODES_SHOWN else ""
        yield "left in float", ", ".join(left[:_MOST_NODES_SHOWN]) + more
    if dense is not None:
        if dense.manifest.parity_max_abs_error is not None:
            yield "import", f"differs from the source by {dense.manifest.parity_max_abs_error:.2g} at most"
        yield from (("import", note) for note in dense.manifest.notes)


def _show(result: BuildResult, *, tier: Artifact | None, dense: Artifact | None) -> None:
    console = Console(highlight=False)
    measured = tier.manifest.measurements if tier else None
    if measured and tier:
        table = Table(show_header=False)
        for label, text in measurement_rows(measured):
            table.add_row(label, escape(text))
        for label, text in backend_rows(tier.manifest):
            table.add_row(label, escape(text))
        parameters = f" (dense {dense.manifest.graph.parameters:,})" if dense else ""
        table.add_row("parameters", f"{tier.manifest.graph.parameters:,}{parameters}")
        for label, text in _findings(tier, dense):
            table.add_row(label, escape(text))
        console.print(table)
        console.print(f"artifact {tier.folder}", markup=False, soft_wrap=True)
    errors = progress_console()
    for reason in result.reasons:
        errors.print(f"{result.outcome}: {reason}", markup=False, soft_wrap=True)
    if result.log:
        errors.print(f"log: {result.log}", markup=False, soft_wrap=True)
