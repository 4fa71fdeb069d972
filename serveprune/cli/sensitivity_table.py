"""What single changes cost and gain, as text for people."""

from collections.abc import Iterator
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serveprune.cli.plan_table import amount
from serveprune.compression.sensitivity.report import POINTS, Change, SensitivityReport

_MOST_SENSITIVE = 3
_REMEDIES: tuple[tuple[Literal["int8", "prune"], str, str], ...] = (
    ("int8", "int8", "`keep_float` in the quantize pass keeps such layers in float"),
    ("prune", "pruning", "`ignore` in the prune pass keeps them whole"),
)
_NARROWEST_NAME = 16
_WIDTH_OF_FILES = 160


def show_sensitivity(report: SensitivityReport, console: Console) -> None:
    """Print a report, the bargains first."""
    for line in (headline(report), basis(report)):
        console.print(line, markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold", min_width=_NARROWEST_NAME)
    table.add_column("change", no_wrap=True)
    for name in ("points lost", "ms gained", "10 to 90 %", "MB gained", "ms/point"):
        table.add_column(name, justify="right", no_wrap=True)
    for change in report.changes:
        name, *cells = row(report, change)
        table.add_row(escape(name), *cells)
    console.print(table)
    for line in findings(report):
        console.print(line, markup=False, soft_wrap=True)


def wide_console() -> Console:
    """Return a console on standard output; into a file or a pipe go whole lines."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_FILES)


def headline(report: SensitivityReport) -> str:
    """Return what was measured on what, in one line."""
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    length = "" if report.length is None else f" of {report.length} tokens"
    earlier = f"; kept since {report.measured}" if report.cached else ""
    return (
        f"{report.model}: dense takes {amount(report.dense_ms)} ms for a batch of {report.batch_size}{length} with "
        f"{threads}{earlier}"
    )


def basis(report: SensitivityReport) -> str:
    """Return what quality means here."""
    counted = f"{report.evaluation_samples} of {report.held_out_samples} samples of {report.evaluation_set}"
    return f"quality: {report.metric} with dense on {counted}; one point is 0.01"


def row(report: SensitivityReport, change: Change) -> tuple[str, ...]:
    """Return a change's cells: layer, change, points, milliseconds, their percentiles, MB, bargain."""
    bargain = report.ms_per_point(change)
    floor = ">" if change.quality_lost < report.least_loss else ""
    return (
        change.layer,
        change_text(change),
        points(report, change.quality_lost),
        signed(change.saved_ms),
        f"{signed(change.saved_ms_low)} to {signed(change.saved_ms_high)}",
        f"{change.saved_bytes / 1e6:.2f}",
        "none" if bargain is None else f"{floor}{amount(bargain)}",
    )


def change_text(change: Change) -> str:
    """Return what was done, such as `1536 to 768 neurons`."""
    if change.change == "int8":
        return f"int8 {change.kind}"
    return f"{change.before} to {change.after} {change.kind}"


def points(report: SensitivityReport, lost: float) -> str:
    """Return a loss in points; below what the samples can show it is `<` that."""
    if lost < report.least_loss:
        return f"<{report.least_loss * POINTS:.2g}"
    in_points = lost * POINTS
    return f"{in_points:.2g}" if in_points < 10 else f"{in_points:.0f}"


def signed(milliseconds: float) -> str:
    """Return milliseconds with two decimals; never `-0.00`."""
    return f"{round(milliseconds, 2) + 0.0:.2f}"


def findings(report: SensitivityReport) -> Iterator[str]:
    """Yield what to make of it, warnings, and what was left out, one line each."""
    yield from (f"warning: {warning}" for warning in report.warnings)
    for kind, word, remedy in _REMEDIES:
        fragile = report.most_sensitive(kind, count=_MOST_SENSITIVE)
        if fragile:
            named = ", ".join(f"{change.layer} ({points(report, change.quality_lost)} points)" for change in fragile)
            yield f"most sensitive to {word}, by error: {named}; {remedy}"
    yield (
        "Each change is made alone, with everything else dense: losses add up only roughly, and milliseconds are those "
        "of the nodes that change. `none`: what it gains is lost in the noise of timing."
    )
    yield from (f"left out: {reason}" for reason in report.left_out)
