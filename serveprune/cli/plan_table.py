"""A pruning plan as text for people."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serveprune.compression.plan_report import CoupledAxis, PlannedGroup, PlanReport

_MOST_WEIGHTS_SHOWN = 3


def show_plan(report: PlanReport, console: Console, *, coupling: bool) -> None:
    """Print a plan.

    Args:
        report: What to print.
        console: Where to.
        coupling: Print also which axes of which weights go together, and every pinned axis instead of the reasons.
    """
    console.print(headline(report), markup=False, soft_wrap=True)
    console.print(_groups(report))
    if report.blocks:
        console.print(_blocks(report))
    for line in (*findings(report, every_axis=coupling), *(coupling_lines(report) if coupling else ())):
        console.print(line, markup=False, soft_wrap=True)


def headline(report: PlanReport) -> str:
    """Return the plan in one line."""
    (kind, value), *_ = report.target.items()
    return f"{report.model}, profile {report.tier}, target {kind} {value:g}: {total_text(report)}; {basis_text(report)}"


def total_text(report: PlanReport) -> str:
    """Return what the whole model is predicted to cost, and to lose."""
    predicted = report.predicted
    ratio = predicted.before / predicted.after if predicted.after else float("inf")
    if predicted.unit == "ms":
        change = f"{amount(predicted.before)} ms to {amount(predicted.after)} ms ({ratio:.2f}x)"
    else:
        change = f"{amount(predicted.before)} to {amount(predicted.after)} {predicted.unit} ({1 / ratio:.0%} left)"
    return f"{change}, error {percent(report.error)}"


def basis_text(report: PlanReport) -> str:
    """Return what the prediction rests on."""
    count = report.passes.count("prune")
    first = f"first of {count} prune passes, " if count > 1 else ""
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    timed = f"batch of {report.batch_size}, {threads}, " if report.predicted.unit == "ms" else ""
    samples = "calibration samples" if report.learned_from == "calibration set" else "made-up samples"
    return f"{first}{timed}{report.calibration_samples} {samples}, importance {report.importance}"


def group_row(group: PlannedGroup) -> tuple[str, str, str, str, str]:
    """Return a group's width, part that stays, error and milliseconds, after its name, as text."""
    saved = "" if group.saved_ms is None else amount(group.saved_ms) if group.after < group.before else "0"
    error = percent(group.error) if group.after else "with its block"
    return group.label, f"{group.before} to {group.after}", f"{group.after / group.before:.0%}", error, saved


def total_row(report: PlanReport) -> tuple[str, str, str, str, str]:
    """Return what `group_row` does for the whole model: its cost, and what all groups together lose and save."""
    predicted = report.predicted
    before, after = predicted.before, predicted.after
    saved = amount(before - after) if predicted.unit == "ms" else ""
    costs = f"{amount(before)} to {amount(after)}"
    return f"whole model, {predicted.unit}", costs, f"{after / before:.0%}", percent(report.error), saved


def amount(value: float) -> str:
    """Return a number in three digits: 0.51, 12.3, 447k, 1.20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{amount(value / size)}{letter}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """Return a share in percent, with two digits that mean something."""
    hundredths = 100 * share
    return "0%" if hundredths < 0.001 else f"{hundredths:.2g}%" if hundredths < 10 else f"{hundredths:.0f}%"


def findings(report: PlanReport, *, every_axis: bool = False) -> Iterator[str]:
    """Yield warnings, and what stays whole and why, one line each."""
    yield from (f"warning: {warning}" for warning in report.warnings)
    later = report.passes[report.planned_pass :]
    if "prune" in later:
        yield (
            f"This is pass {report.planned_pass} of {len(report.passes)} ({', '.join(report.passes)}). The next prune "
            "works on what this one leaves, repaired, and is not planned here."
        )
    if any(group.saved_ms is not None for group in report.groups):
        yield (
            "Milliseconds and errors are those of each group alone, the others dense; layers between two groups get "
            "faster by both, so the milliseconds do not add up to the total."
        )
    if report.error >= 1:
        yield (
            f"An error of {percent(report.error)} means that the answers are predicted to have nothing to do with "
            "those of dense: the gate will hardly let such a tier serve."
        )
    for group in report.left_whole:
        yield f"left whole: {group.label}, {group.width} {group.kind} ({group.reason})"
    for reason, axes in report.pinned_by_reason().items():
        shown = axes if every_axis else axes[:_MOST_WEIGHTS_SHOWN]
        names = ", ".join(f"{axis.weight}[{axis.axis}]" for axis in shown)
        more = f" and {len(axes) - len(shown)} more" if len(axes) > len(shown) else ""
        yield f"pinned: {reason}: {names}{more}"
    if report.not_understood:
        yield f"not understood, so what they touch is kept whole: {', '.join(report.not_understood)}"


def coupling_lines(report: PlanReport) -> Iterator[str]:
    """Yield per group the axes that go together."""
    for group in report.groups:
        yield from _coupling(f"{group.label}: {group.before} {group.kind}", group.coupled)
    for whole in report.left_whole:
        yield from _coupling(f"{whole.label}: {whole.width} {whole.kind}, left whole", whole.coupled)


def _coupling(title: str, coupled: tuple[CoupledAxis, ...]) -> Iterator[str]:
    yield f"{title} go together in"
    for piece in coupled:
        each = f", {piece.positions_per_unit} positions each" if piece.positions_per_unit > 1 else ""
        yield f"    {piece.weight}, axis {piece.axis}{each}"


def _groups(report: PlanReport) -> Table:
    timed = any(group.saved_ms is not None for group in report.groups)
    table = Table()
    table.add_column("group", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for name in ("width", "kept", "error", *(("ms saved",) if timed else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for group in report.groups:
        name, *cells = group_row(group)
        table.add_row(escape(name), group.kind, *(cells if timed else cells[:-1]))
    table.add_section()
    name, *cells = total_row(report)
    table.add_row(name, "", *(cells if timed else cells[:-1]))
    return table


def _blocks(report: PlanReport) -> Table:
    table = Table()
    table.add_column("residual block", overflow="fold")
    table.add_column("around", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("error without", justify="right", no_wrap=True)
    labels = {group.name: group.label for group in report.groups}
    for block in report.blocks:
        around = ", ".join(labels[name] for name in block.groups)
        state = "removed" if block.removed else "stays"
        table.add_row(escape(block.name), escape(around), state, percent(block.error))
    return table
