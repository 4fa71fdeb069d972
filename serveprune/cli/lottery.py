"""`serveprune lottery`: which sparse network learns as well as the dense one, and how sparse it may be."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from serveprune.artifacts.builder import BuildOutcome, BuildResult
from serveprune.artifacts.store import Artifact
from serveprune.cli.compress import EXIT_INTERRUPTED, exit_status
from serveprune.cli.compress_target import Pooling, SourceFlags, Target, TaskFlag, resolve_target, with_samples
from serveprune.cli.console import progress_console
from serveprune.cli.interruption import interruption
from serveprune.cli.lottery_picture import write_lottery_picture
from serveprune.cli.lottery_table import show_lottery
from serveprune.cli.plan_picture import check_picture
from serveprune.cli.tier_build import build_tier
from serveprune.cli.tier_table import table_console
from serveprune.compression.lottery.report import LotteryReport
from serveprune.errors import InvalidArgument, ServePruneError

_PASS = "lottery"


def lottery(
    model: Annotated[str, typer.Argument(help="Name of a model in the config, or an .onnx, .pt2 or model folder.")],
    profile: Annotated[str, typer.Option(help="Name of a profile with a lottery pass, or a YAML file that holds one.")],
    config: Annotated[
        Path | None, typer.Option(help="Configuration. Default: serveprune.yaml, if MODEL is no path.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Labelled inputs to learn from (.npz or .jsonl).")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Held-out inputs to judge the tier on.")] = None,
    store: Annotated[Path | None, typer.Option(help="Artifact store. Default: the config's.")] = None,
    task: Annotated[TaskFlag | None, typer.Option(help="As for `compress`.")] = None,
    pooling: Annotated[Pooling, typer.Option(help="As for `compress`.")] = "none",
    normalize: Annotated[bool, typer.Option(help="As for `compress`.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy over sparsity into this .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Build a tier whose profile has a `lottery` pass, or find it in the store, and show its table.

    The table has the accuracy of the ticket, of the same mask with random weights, and of dense, by sparsity. What was
    trained before a kill is not trained again. Exit status: as for `compress`; a refused tier has a table too.
    """
    try:
        if plot is not None:
            check_picture(plot)
        target = resolve_target(
            model, profile=profile, config=config, store=store, flags=SourceFlags(task, pooling, normalize)
        )
        target = with_samples(target, calibration=calibration, evaluation=evaluation)
        _require_pass(target)
        with interruption() as interrupted:
            result, artifacts = build_tier(target, interrupted)
        tier = artifacts.open(result.key) if result.key else None
        report = None if tier is None else _report(tier)
        if plot is not None and report is not None:
            write_lottery_picture(report, plot, title=f"{target.name}, profile {target.tier}")
    except ServePruneError as error:
        if not as_json:
            raise
        failure = BuildResult(BuildOutcome.FAILED, reasons=(error.message,), bad_input=error.is_bad_input)
        print(json.dumps(answer(failure, tier=None, report=None, picture=None)))
        raise typer.Exit(exit_status(failure)) from error
    if as_json:
        print(json.dumps(answer(result, tier=tier, report=report, picture=plot)))
    else:
        _show(result, target, tier=tier, report=report, picture=plot)
    stopped = interrupted.is_set() and result.outcome is BuildOutcome.FAILED
    raise typer.Exit(EXIT_INTERRUPTED if stopped else exit_status(result))


def answer(
    result: BuildResult, *, tier: Artifact | None, report: LotteryReport | None, picture: Path | None
) -> dict[str, Any]:
    """Return the JSON object that `--json` prints; without a tier, its keys are null and the reasons say why."""
    return {
        "outcome": str(result.outcome),
        "reasons": list(result.reasons),
        "lottery": None if report is None else report.model_dump(mode="json"),
        "artifact": None if tier is None else str(tier.folder),
        "mask": None if tier is None or report is None else str(tier.folder / report.mask),
        "picture": str(picture) if picture is not None and report is not None else None,
        "seconds": result.seconds,
        "log": str(result.log) if result.log else None,
    }


def _require_pass(target: Target) -> None:
    names = [step.name for step in target.profile.passes]
    if _PASS not in names:
        raise InvalidArgument(
            f"expected a profile with a `{_PASS}` pass; the passes of {target.tier} are: {', '.join(names)}"
        )


def _report(tier: Artifact) -> LotteryReport:
    found = next(step for step in tier.manifest.passes if step.name == _PASS)
    return LotteryReport.model_validate(found.report)


def _show(
    result: BuildResult, target: Target, *, tier: Artifact | None, report: LotteryReport | None, picture: Path | None
) -> None:
    errors = progress_console()
    if tier is not None and report is not None:
        console = table_console()
        show_lottery(report, console, title=f"{target.name}, profile {target.tier}")
        console.print(f"mask {tier.folder / report.mask}", markup=False, soft_wrap=True)
        console.print(f"artifact {tier.folder}", markup=False, soft_wrap=True)
        if picture is not None:
            errors.print(f"picture: {picture}", markup=False, soft_wrap=True)
    for reason in result.reasons:
        errors.print(f"{result.outcome}: {reason}", markup=False, soft_wrap=True)
    if result.log:
        errors.print(f"log: {result.log}", markup=False, soft_wrap=True)
