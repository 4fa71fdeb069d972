"""A lottery as a picture: accuracy over the weights left."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serveprune.cli.lottery_table import recipe_text
from serveprune.compression.lottery.report import LotteryReport, TrainedNetwork
from serveprune.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who see colours differently can tell apart.
_TICKET, _REINITIALIZED, _DENSE, _INK, _FAINT_INK = "#0072B2", "#D55E00", "#444444", "#222222", "#666666"
_SIZE_INCHES = (7.2, 4.2)
_DOTS_PER_INCH = 150


def write_lottery_picture(report: LotteryReport, path: Path, *, title: str) -> None:
    """Draw a lottery into a file; `check_picture` says what has to hold.

    Raises:
        InvalidArgument: The file cannot be written.
    """
    import matplotlib as mpl

    try:
        # The same figures give the same bytes.
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        with mpl.rc_context({"svg.hashsalt": "serveprune"}):
            draw_lottery(report, title=title).savefig(path, dpi=_DOTS_PER_INCH, metadata=metadata)
    except OSError as error:
        raise InvalidArgument(f"--plot: {path} could not be written: {error.strerror}") from error


def draw_lottery(report: LotteryReport, *, title: str) -> "Figure":
    """Return a figure with a line for tickets, one for random re-initializations, and one for dense."""
    # Only this function needs matplotlib; pyplot, which keeps every figure it makes, is not used.
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, facecolor="white")
    axes = figure.add_axes((0.1, 0.14, 0.86, 0.68))
    dense = 100 * report.dense.accuracy
    error = 100 * report.standard_error(report.dense.accuracy)
    axes.axhspan(dense - error, dense + error, color=_DENSE, alpha=0.12, linewidth=0)
    axes.axhline(dense, color=_DENSE, linewidth=1.2, linestyle="--", label="dense")
    controls = [each.reinitialized for each in report.rounds if each.reinitialized is not None]
    places = range(len(report.rounds))
    if len(controls) == len(report.rounds):
        _line(axes, report, places, controls, colour=_REINITIALIZED, label="same mask, random re-initialization")
    _line(axes, report, places, [each.ticket for each in report.rounds], colour=_TICKET, label="ticket")
    chosen = next(place for place in places if report.rounds[place].round == report.left)
    ticket = 100 * report.rounds[chosen].ticket.accuracy
    axes.plot([chosen], [ticket], "o", markersize=12, markerfacecolor="none", markeredgecolor=_TICKET)
    _decorate(axes, report)
    axes.legend(loc="lower left", frameon=False, fontsize=9)
    figure.text(0.1, 0.94, title, fontsize=12, fontweight="bold", color=_INK, va="center")
    figure.text(0.1, 0.875, recipe_text(report), fontsize=8.5, color=_FAINT_INK, va="center")
    return figure


def _line(
    axes: "Axes",
    report: LotteryReport,
    places: Sequence[int],
    networks: Sequence[TrainedNetwork],
    *,
    colour: str,
    label: str,
) -> None:
    accuracies = [100 * each.accuracy for each in networks]
    errors = [100 * report.standard_error(each.accuracy) for each in networks]
    axes.errorbar(places, accuracies, yerr=errors, color=colour, marker="o", markersize=5, capsize=3, label=label)


def _decorate(axes: "Axes", report: LotteryReport) -> None:
    # Rounds at equal distances: each removes the same part of what is left.
    axes.set_xticks(range(len(report.rounds)), [f"{each.sparsity:.1%}" for each in report.rounds])
    axes.set_xlabel("sparsity", color=_FAINT_INK, fontsize=9)
    axes.set_ylabel(f"accuracy on {report.judged_samples:,} samples, percent", color=_FAINT_INK, fontsize=9)
    axes.tick_params(length=0, labelsize=9, labelcolor=_INK)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
