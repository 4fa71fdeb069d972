"""What single changes cost and gain, as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serveprune.cli.plan_picture import shortened
from serveprune.cli.sensitivity_table import headline
from serveprune.compression.sensitivity.report import POINTS, Change, SensitivityReport
from serveprune.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who see colours differently can tell apart.
_INT8 = "#D55E00"
_PRUNED = {25: "#56B4E9", 50: "#0072B2", 75: "#1B2A49"}
"""By about how many percent are removed."""

_INK, _FAINT_INK, _STRIPE = "#222222", "#666666", "#F3F3F3"
_FONT_POINTS, _TITLE_POINTS = 9.0, 13.0
_LETTER_INCHES = 0.58 * _FONT_POINTS / 72

# All lengths in inches: the figure grows with the number of layers, its letters do not.
_ROW, _HEADER, _FOOTER, _MARGIN, _PANEL, _GAP = 0.27, 1.2, 0.95, 0.25, 4.0, 0.35
_DOTS_PER_INCH = 150
_MOST_INCHES = 400.0
_MARKERS = {"int8": "s", "prune": "o"}


def write_picture(report: SensitivityReport, path: Path) -> None:
    """Draw a report into a file.

    Raises:
        InvalidArgument: The file cannot be written.
    """
    try:
        draw(report).savefig(path, dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise InvalidArgument(f"--plot: {path} could not be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Dot:
    """One change on the row of its layer."""

    place: int
    change: Change
    series: str
    colour: str


def draw(report: SensitivityReport) -> "Figure":
    """Return a figure with one row per layer: on the left what changes cost, on the right what they gain."""
    # Only this function needs matplotlib; pyplot, which keeps every figure it makes, is not used.
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(change.layer for change in report.changes))
    names = shortened(layers)
    dots = _dots(report, {layer: place for place, layer in enumerate(layers)})
    left = max(map(len, names)) * _LETTER_INCHES + 2 * _MARGIN
    width = left + 2 * _PANEL + _GAP + _MARGIN
    height = min(_HEADER + _ROW * len(layers) + _FOOTER, _MOST_INCHES)
    figure = Figure(figsize=(width, height), facecolor="white")
    panels = []
    for index in range(2):
        start = left + index * (_PANEL + _GAP)
        box = (start / width, _FOOTER / height, _PANEL / width, 1 - (_HEADER + _FOOTER) / height)
        panels.append(figure.add_axes(box))
    lost, gained = panels
    _draw_lost(lost, report, dots)
    _draw_gained(gained, dots)
    for axes, heading in ((lost, f"points of {report.metric} lost"), (gained, "ms gained, median and 10 to 90 %")):
        _draw_frame(axes, rows=len(layers), heading=heading)
    lost.set_yticks(range(len(layers)), names)
    gained.set_yticks([])
    figure.text(
        _MARGIN / width, 1 - 0.3 / height, f"{report.model}: what each layer can lose, and what that gains",
        fontsize=_TITLE_POINTS, color=_INK, fontweight="bold", va="center",
    )  # fmt: skip
    told = f"{headline(report).partition(': ')[2]}; quality on {report.evaluation_samples} held-out samples"
    figure.text(_MARGIN / width, 1 - 0.58 / height, told, fontsize=_FONT_POINTS, color=_FAINT_INK, va="center")
    _draw_legend(figure, dots, x=0.5, y=0.25 / height)
    return figure


def _dots(report: SensitivityReport, places: dict[str, int]) -> list[_Dot]:
    found = []
    for layer, place in places.items():
        for change in (each for each in report.changes if each.layer == layer):
            if change.change == "int8":
                found.append(_Dot(place, change, "int8", _INT8))
                continue
            nearest = min(_PRUNED, key=lambda percent: abs(percent - 100 * change.strength))
            found.append(_Dot(place, change, f"about {nearest} % removed", _PRUNED[nearest]))
    return found


def _draw_lost(axes: "Axes", report: SensitivityReport, dots: list[_Dot]) -> None:
    least = report.least_loss * POINTS
    losses = [max(dot.change.quality_lost * POINTS, least) for dot in dots]
    for dot, loss in zip(dots, losses, strict=True):
        seen = dot.change.quality_lost * POINTS >= least
        axes.plot(
            loss, dot.place, _MARKERS[dot.change.change], markersize=6, markeredgecolor=dot.colour,
            markerfacecolor=dot.colour if seen else "white",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(least / 1.6, max(*losses, 10 * least) * 1.6)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda _value, _place: "")


def _draw_gained(axes: "Axes", dots: list[_Dot]) -> None:
    for dot in dots:
        change = dot.change
        axes.plot(
            [change.saved_ms_low, change.saved_ms_high], [dot.place] * 2, color=dot.colour, linewidth=1.2, alpha=0.6
        )
        axes.plot(
            change.saved_ms, dot.place, _MARKERS[change.change], markersize=6, markeredgecolor=dot.colour,
            markerfacecolor=dot.colour if change.saves_time else "white",
        )  # fmt: skip
    axes.axvline(0, color=_FAINT_INK, linewidth=0.8)


def _draw_frame(axes: "Axes", *, rows: int, heading: str) -> None:
    for place in range(0, rows, 2):
        axes.axhspan(place - 0.5, place + 0.5, color=_STRIPE, linewidth=0, zorder=0)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_title(heading, fontsize=_FONT_POINTS, color=_INK, loc="left", pad=8)
    axes.tick_params(which="both", length=0, labelsize=_FONT_POINTS, labelcolor=_INK, pad=6)
    axes.tick_params(axis="x", labelcolor=_FAINT_INK, labelsize=_FONT_POINTS - 1)
    axes.xaxis.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_legend(figure: "Figure", dots: list[_Dot], *, x: float, y: float) -> None:
    from matplotlib.lines import Line2D

    series = {dot.series: dot for dot in sorted(dots, key=lambda dot: (dot.change.change == "int8", dot.series))}
    handles = [
        Line2D([], [], linestyle="", marker=_MARKERS[dot.change.change], color=dot.colour, label=name)
        for name, dot in series.items()
    ]
    handles.append(
        Line2D([], [], linestyle="", marker="o", color=_FAINT_INK, markerfacecolor="white", label="too small to tell")
    )
    figure.legend(
        handles=handles, loc="center", bbox_to_anchor=(x, y), ncols=len(handles), frameon=False, fontsize=_FONT_POINTS
    )
