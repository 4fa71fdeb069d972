"""A lottery as text for people."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from serveprune.compression.lottery.report import LotteryReport, TrainedNetwork


def show_lottery(report: LotteryReport, console: Console, *, title: str) -> None:
    """Print the table of sparsity against accuracy, and what it rests on."""
    console.print(f"{title}: {recipe_text(report)}", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("sparsity", "weights\nleft", "ticket", "same mask,\nrandom weights", "dense", "points\nlost"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(report):
        table.add_row(*row)
    console.print(table)
    for line in findings(report):
        console.print(line, markup=False, soft_wrap=True)


def rows(report: LotteryReport) -> Iterator[tuple[str, ...]]:
    """Yield the cells of the table: dense first, then a row per round; that of the tier has a star."""
    dense = accuracy_text(report, report.dense)
    yield "0.0%", f"{report.weights:,}", "", "", dense, ""
    for each in report.rounds:
        yield (
            f"{each.sparsity:.1%}" + (" *" if each.round == report.left else ""),
            f"{report.weights - each.zeros:,}",
            accuracy_text(report, each.ticket),
            "" if each.reinitialized is None else accuracy_text(report, each.reinitialized),
            dense,
            f"{100 * (report.dense.accuracy - each.ticket.accuracy):+.2f}",
        )


def accuracy_text(report: LotteryReport, network: TrainedNetwork) -> str:
    """Return an accuracy in percent, with its standard error."""
    error = report.standard_error(network.accuracy)
    return f"{network.accuracy:.2%} ± {100 * error:.2f}"


def recipe_text(report: LotteryReport) -> str:
    """Return what every round goes back to, and how weights were compared."""
    ((kind, place),) = report.rewind.items()
    rewound = {
        "step": f"weights rewound to step {place}",
        "checkpoint": "weights rewound to a checkpoint",
        "learning_rate": f"learning rate rewound to step {place}",
    }[kind]
    compared = "of all layers together" if report.scope == "global" else "of each layer"
    return f"the smallest weights {compared} removed, {rewound}, seed {report.seed}"


def findings(report: LotteryReport) -> Iterator[str]:
    """Yield what the figures rest on, and warnings, one line each."""
    yield (
        f"accuracy (± standard error) on {report.judged_samples:,} labelled samples of the calibration set that were "
        f"neither learned from ({report.learned_samples:,}) nor used to choose the best weights "
        f"({report.choosing_samples:,}); * is the tier"
    )
    ticket = next(each for each in report.rounds if each.round == report.left)
    yield (
        f"zeros are {ticket.zeros:,} of the {report.weights:,} weights that may be removed, "
        f"{ticket.zeros / report.all_weights:.1%} of all {report.all_weights:,} learned numbers"
    )
    if report.kept_as_given:
        yield f"not drawn anew, for no known layer reads them: {', '.join(report.kept_as_given)}"
    yield from (f"warning: {warning}" for warning in report.warnings)
