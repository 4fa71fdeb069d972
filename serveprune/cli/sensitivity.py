"""`serveprune sensitivity`: what each layer can lose, and what that gains, measured."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from serveprune.artifacts.builder import BuildOutcome, BuildRequest, BuildResult
from serveprune.artifacts.opening import open_store
from serveprune.cli.compress_target import Pooling, SourceFlags, Target, TaskFlag, resolve_target, with_samples
from serveprune.cli.console import progress_console, progress_display
from serveprune.cli.interruption import interruption
from serveprune.cli.plan_picture import check_picture
from serveprune.cli.sensitivity_picture import write_picture
from serveprune.cli.sensitivity_table import show_sensitivity, wide_console
from serveprune.compression.child import SubprocessBuilder
from serveprune.compression.sensitivity.report import SensitivityReport
from serveprune.config.profile import PassConfig, ProfileConfig, QuantizeOptions
from serveprune.config.pruning import PruneOptions, PruneTarget
from serveprune.errors import ServePruneError

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_WORKER = "serveprune.compression.sensitivity.worker"
_TIER = "sensitivity"
_LOG_SUFFIX = "@sensitivity"  # no tier has an @ in its name

# No target is aimed at: every group is narrowed alone.
_BOTH = ProfileConfig(
    passes=(PassConfig(prune=PruneOptions(target=PruneTarget(ratio=0.5))), PassConfig(quantize=QuantizeOptions()))
)


def sensitivity(
    model: Annotated[str, typer.Argument(help="Name of a model in the config, or an .onnx, .pt2 or model folder.")],
    profile: Annotated[
        str | None,
        typer.Option(help="Look only at what its prune and quantize passes do, with their options. Default: at both."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration. Default: serveprune.yaml, if MODEL is no path.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Unlabelled inputs to learn from (.npz or .jsonl).")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Held-out inputs that quality is measured on.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Most held-out samples to look at. Default: 128 to 2000, fewer for larger models."),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Artifact store. Default: the config's.")] = None,
    task: Annotated[TaskFlag | None, typer.Option(help="As for `compress`.")] = None,
    pooling: Annotated[Pooling, typer.Option(help="As for `compress`.")] = "none",
    normalize: Annotated[bool, typer.Option(help="As for `compress`.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png, .svg or .pdf file.")] = None,
    again: Annotated[bool, typer.Option(help="Measure even if the store has the answer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Change one layer at a time, and say what that costs in quality and gains in milliseconds: the bargains first.

    Groups lose a quarter, a half and three quarters of their channels, neurons or heads; layers go to int8 alone.
    Quality is the model's own metric on held-out samples, time is that of this machine. No tier is made; the answer
    is kept in the store. Exit status: 0 measured, 2 bad input (nothing to prune, no samples, a quantized graph),
    1 any other failure, 130 interrupted.
    """
    try:
        if plot is not None:
            check_picture(plot)
        target = _target(
            model, profile=profile, config=config, store=store, flags=SourceFlags(task, pooling, normalize)
        )
        target = with_samples(target, calibration=calibration, evaluation=evaluation)
        with interruption() as interrupted:
            result = _measure(target, {"samples": samples, "again": again}, interrupted)
        open_store(target.store).publish()  # the imported graph, if it is new
        report = None if result.findings is None else SensitivityReport.model_validate(result.findings)
        if plot is not None and report is not None:
            write_picture(report, plot)
    except ServePruneError as error:
        if not as_json:
            raise
        failure = BuildResult(BuildOutcome.FAILED, reasons=(error.message,), bad_input=error.is_bad_input)
        print(json.dumps(answer(failure, report=None, picture=None)))
        raise typer.Exit(EXIT_BAD_INPUT if error.is_bad_input else EXIT_FAILURE) from error
    if as_json:
        print(json.dumps(answer(result, report=report, picture=plot)))
    else:
        _show(result, report, picture=plot)
    if report is None:
        failed = EXIT_BAD_INPUT if result.bad_input else EXIT_FAILURE
        raise typer.Exit(EXIT_INTERRUPTED if interrupted.is_set() else failed)


def answer(result: BuildResult, *, report: SensitivityReport | None, picture: Path | None) -> dict[str, Any]:
    """Return the JSON object that `--json` prints; without a report, its keys are null and the reasons say why."""
    return {
        "outcome": "failed" if report is None else "measured",
        "reasons": list(result.reasons),
        "sensitivity": None if report is None else report.answer(),
        "picture": str(picture) if picture is not None and report is not None else None,
        "seconds": result.seconds,
        "log": str(result.log) if result.log else None,
    }


def _target(model: str, *, profile: str | None, config: Path | None, store: Path | None, flags: SourceFlags) -> Target:
    if profile is not None:
        return resolve_target(model, profile=profile, config=config, store=store, flags=flags)
    built_in = resolve_target(model, profile="int8", config=config, store=store, flags=flags)
    return replace(built_in, tier=_TIER, profile=_BOTH)


def _measure(target: Target, settings: dict[str, Any], interrupted: Event) -> BuildResult:
    measurer = SubprocessBuilder(
        target.store,
        target.builds,
        threads_of_serving=target.threads_of_serving,
        worker=_WORKER,
        log_suffix=_LOG_SUFFIX,
        settings=settings,
    )
    request = BuildRequest(model_name=target.name, model=target.model, tier=target.tier, profile=target.profile)
    with progress_display(progress_console()) as display:
        result = measurer.build(
            request, on_progress=lambda progress: display.update(target.name, progress), cancelled=interrupted
        )
        ending = "failed" if result.outcome is BuildOutcome.FAILED else "measured"
        display.finish(target.name, f"{ending} in {result.seconds:.1f} s")
    return result


def _show(result: BuildResult, report: SensitivityReport | None, *, picture: Path | None) -> None:
    errors = progress_console()
    if report is not None:
        show_sensitivity(report, wide_console())
        if picture is not None:
            errors.print(f"picture: {picture}", markup=False, soft_wrap=True)
    for reason in result.reasons:
        errors.print(f"error: {reason}", markup=False, soft_wrap=True)
    if result.log:
        errors.print(f"log: {result.log}", markup=False, soft_wrap=True)
