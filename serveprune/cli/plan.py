"""`serveprune plan`: what pruning would do to a model, before anything is cut."""

import json
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer
from rich.console import Console

from serveprune.artifacts.builder import BuildOutcome, BuildRequest, BuildResult
from serveprune.artifacts.opening import open_store
from serveprune.cli.compress_target import Pooling, SourceFlags, Target, TaskFlag, resolve_target, with_samples
from serveprune.cli.console import progress_console, progress_display
from serveprune.cli.interruption import interruption
from serveprune.cli.plan_picture import check_picture, write_picture
from serveprune.cli.plan_table import show_plan
from serveprune.compression.child import SubprocessBuilder
from serveprune.compression.plan_report import PlanReport
from serveprune.errors import ServePruneError

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_PLANNER = "serveprune.compression.planner"
_LOG_SUFFIX = "@plan"  # no tier has an @ in its name


def plan(
    model: Annotated[str, typer.Argument(help="Name of a model in the config, or an .onnx, .pt2 or model folder.")],
    profile: Annotated[str, typer.Option(help="Name of a profile with a prune pass, or a YAML file that holds one.")],
    config: Annotated[
        Path | None, typer.Option(help="Configuration. Default: serveprune.yaml, if MODEL is no path.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Unlabelled inputs to learn from (.npz or .jsonl).")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Held-out inputs: the build would not learn from them either.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Artifact store. Default: the config's.")] = None,
    task: Annotated[TaskFlag | None, typer.Option(help="As for `compress`.")] = None,
    pooling: Annotated[Pooling, typer.Option(help="As for `compress`.")] = "none",
    normalize: Annotated[bool, typer.Option(help="As for `compress`.")] = False,
    coupling: Annotated[bool, typer.Option(help="Print which weights and axes go together, per group.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the plan into this .png, .svg or .pdf file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what a profile's first prune pass would remove, what that costs and saves, and what stays whole and why.

    Nothing is cut and no tier is made; what is measured is kept in the store, so that a build that follows does not
    measure it again. Exit status: 0 planned, 2 bad input (an unreachable target, nothing to prune, no calibration
    set, a quantized graph), 1 any other failure, 130 interrupted.
    """
    try:
        if plot is not None:
            check_picture(plot)
        target = resolve_target(
            model, profile=profile, config=config, store=store, flags=SourceFlags(task, pooling, normalize)
        )
        target = with_samples(target, calibration=calibration, evaluation=evaluation)
        with interruption() as interrupted:
            result = _plan(target, interrupted)
        open_store(target.store).publish()  # the imported graph, if it is new
        report = None if result.findings is None else PlanReport.model_validate(result.findings)
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
        _show(result, report, coupling=coupling, picture=plot)
    if report is None:
        failed = EXIT_BAD_INPUT if result.bad_input else EXIT_FAILURE
        raise typer.Exit(EXIT_INTERRUPTED if interrupted.is_set() else failed)


def answer(result: BuildResult, *, report: PlanReport | None, picture: Path | None) -> dict[str, Any]:
    """Return the JSON object that `--json` prints; without a plan, its keys are null and the reasons say why."""
    return {
        "outcome": "failed" if report is None else "planned",
        "reasons": list(result.reasons),
        "plan": None if report is None else report.model_dump(mode="json"),
        "picture": str(picture) if picture is not None and report is not None else None,
        "seconds": result.seconds,
        "log": str(result.log) if result.log else None,
    }


def _plan(target: Target, interrupted: Event) -> BuildResult:
    planner = SubprocessBuilder(
        target.store,
        target.builds,
        threads_of_serving=target.threads_of_serving,
        worker=_PLANNER,
        log_suffix=_LOG_SUFFIX,
    )
    request = BuildRequest(model_name=target.name, model=target.model, tier=target.tier, profile=target.profile)
    name = f"{target.name}@{target.tier}"
    with progress_display(progress_console()) as display:
        result = planner.build(
            request, on_progress=lambda progress: display.update(name, progress), cancelled=interrupted
        )
        ending = "failed" if result.outcome is BuildOutcome.FAILED else "planned"
        display.finish(name, f"{ending} in {result.seconds:.1f} s")
    return result


def _show(result: BuildResult, report: PlanReport | None, *, coupling: bool, picture: Path | None) -> None:
    errors = progress_console()
    if report is not None:
        show_plan(report, Console(highlight=False), coupling=coupling)
        if picture is not None:
            errors.print(f"picture: {picture}", markup=False, soft_wrap=True)
    for reason in result.reasons:
        errors.print(f"error: {reason}", markup=False, soft_wrap=True)
    if result.log:
        errors.print(f"log: {result.log}", markup=False, soft_wrap=True)
