"""A pruning plan as a picture."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serveprune.cli.plan_table import basis_text, group_row, total_row, total_text
from serveprune.compression.plan_report import PlannedGroup, PlanReport
from serveprune.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which people who see colours differently can tell apart.
_COLOURS = {"channels": "#0072B2", "neurons": "#009E73", "heads": "#D55E00", "head_dims": "#CC79A7"}
_OTHER_COLOUR, _TOTAL_COLOUR, _INK, _FAINT_INK = "#56B4E9", "#444444", "#222222", "#666666"
_REMOVED_OPACITY = 0.2
_FONT_POINTS, _TITLE_POINTS = 9.0, 13.0
_POINTS_PER_INCH = 72
_LETTER, _BOLD_LETTER = 0.58, 0.68  # widths, as part of the height
_LETTER_INCHES = _LETTER * _FONT_POINTS / _POINTS_PER_INCH
_LONGEST_NAME = 56

# All lengths in inches: the figure grows with the number of groups, its letters do not.
_ROW, _HEADER, _FOOTER, _MARGIN, _BARS = 0.27, 1.15, 0.75, 0.25, 4.2
_COLUMNS = {"width": 1.25, "kept": 0.65, "error": 1.1, "ms saved": 0.85}
_BAR_HEIGHT = 0.7  # of a row
_TOTAL_GAP = 0.7  # rows
_DOTS_PER_INCH = 150
_MOST_INCHES = 400.0
"""Agg draws up to 2 ** 16 dots; a thousand groups fit."""


def check_picture(path: Path) -> None:
    """Find out before the work whether its picture could be drawn and written.

    Raises:
        MissingExtra: matplotlib is not installed.
        InvalidArgument: The file's ending is of no known format, or there is no such folder.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra('--plot needs matplotlib: pip install "serveprune[plot]"')
    if path.suffix.lower() not in FORMATS:
        raise InvalidArgument(f"--plot: expected a file that ends in {', '.join(FORMATS)}; got {path}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidArgument(f"--plot: expected a file in a folder that exists, got {path}")


def write_picture(report: PlanReport, path: Path) -> None:
    """Draw a plan into a file; `check_picture` says what has to hold.

    Raises:
        InvalidArgument: The file cannot be written.
    """
    try:
        draw(report).savefig(path, dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise InvalidArgument(f"--plot: {path} could not be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Row:
    """One bar, with what is written beside it; ``place`` counts rows from the top."""

    place: float
    name: str
    kept: float
    colour: str
    cells: tuple[str, ...]
    weight: str = "normal"


def draw(report: PlanReport) -> "Figure":
    """Return a figure with one bar per group and one for the whole model."""
    # Only this function needs matplotlib; pyplot, which keeps every figure it makes, is not used.
    from matplotlib.figure import Figure

    timed = any(group.saved_ms is not None for group in report.groups)
    columns = dict(list(_COLUMNS.items())[: 4 if timed else 3])
    names = shortened([group.label for group in report.groups])
    rows = [
        _group(index, group, name=name, cells=len(columns))
        for index, (group, name) in enumerate(zip(report.groups, names, strict=True))
    ]
    rows.append(_total(report, place=len(rows) + _TOTAL_GAP, cells=len(columns)))
    left = max(len(row.name) for row in rows) * _LETTER_INCHES + 2 * _MARGIN
    width = left + _BARS + sum(columns.values()) + _MARGIN
    bars_height = _ROW * (rows[-1].place + 1)
    height = min(_HEADER + bars_height + _FOOTER, _MOST_INCHES)
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((left / width, _FOOTER / height, _BARS / width, 1 - (_HEADER + _FOOTER) / height))
    _draw_bars(axes, rows)
    _draw_cells(axes, rows, columns)
    _draw_words(figure, report, width=width, height=height)
    _draw_legend(figure, report, x=(left + _BARS / 2) / width, y=0.3 / height)
    return figure


def _group(index: int, group: PlannedGroup, *, name: str, cells: int) -> _Row:
    _, *texts = group_row(group)
    colour = _COLOURS.get(group.kind, _OTHER_COLOUR)
    return _Row(index, name, group.after / group.before, colour, tuple(texts[:cells]))


def _total(report: PlanReport, *, place: float, cells: int) -> _Row:
    predicted = report.predicted
    kept = predicted.after / predicted.before if predicted.before else 1.0
    name, *texts = total_row(report)
    return _Row(place, name, kept, _TOTAL_COLOUR, tuple(texts[:cells]), weight="bold")


def _draw_bars(axes: "Axes", rows: list[_Row]) -> None:
    places, kept, colours = [row.place for row in rows], [row.kept for row in rows], [row.colour for row in rows]
    axes.barh(places, [1.0] * len(rows), height=_BAR_HEIGHT, color=colours, alpha=_REMOVED_OPACITY, linewidth=0)
    axes.barh(places, kept, height=_BAR_HEIGHT, color=colours, linewidth=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(rows[-1].place + 0.5, -0.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_yticks(places, [row.name for row in rows])
    axes.tick_params(length=0, labelsize=_FONT_POINTS, labelcolor=_INK, pad=6)
    axes.tick_params(axis="x", labelcolor=_FAINT_INK, labelsize=_FONT_POINTS - 1)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.xaxis.grid(visible=True, color="white", linewidth=0.8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_cells(axes: "Axes", rows: list[_Row], columns: dict[str, float]) -> None:
    right = 1.0
    for index, (head, inches) in enumerate(columns.items()):
        right += inches / _BARS
        heading = axes.text(right, -1.0, head, color=_FAINT_INK)
        cells = [axes.text(right, row.place, row.cells[index], color=_INK, weight=row.weight) for row in rows]
        for text in (heading, *cells):
            text.set(ha="right", va="center_baseline", fontsize=_FONT_POINTS)
    line = rows[-1].place - 0.5 - _TOTAL_GAP / 2
    axes.plot([0, right], [line, line], color=_FAINT_INK, linewidth=0.6, clip_on=False)


def _draw_words(figure: "Figure", report: PlanReport, *, width: float, height: float) -> None:
    (kind, value), *_ = report.target.items()
    title = f"{report.model}, profile {report.tier}: {total_text(report)}"
    basis = f"predicted for the target {kind} {value:g}; {basis_text(report)}"
    # A line that would run out of the picture gets smaller letters.
    room = (width - 2 * _MARGIN) * _POINTS_PER_INCH
    bold, plain = (
        min(points, room / (wide * len(text)))
        for points, wide, text in ((_TITLE_POINTS, _BOLD_LETTER, title), (_FONT_POINTS, _LETTER, basis))
    )
    left = _MARGIN / width
    figure.text(left, 1 - 0.28 / height, title, fontsize=bold, color=_INK, fontweight="bold", va="center")
    figure.text(left, 1 - 0.56 / height, basis, fontsize=plain, color=_FAINT_INK, va="center")


def _draw_legend(figure: "Figure", report: PlanReport, *, x: float, y: float) -> None:
    from matplotlib.patches import Patch

    kinds = dict.fromkeys(group.kind for group in report.groups)
    handles = [Patch(color=_COLOURS.get(kind, _OTHER_COLOUR), label=f"{kind.replace('_', ' ')} kept") for kind in kinds]
    handles.append(Patch(color=_TOTAL_COLOUR, alpha=_REMOVED_OPACITY, label="removed"))
    figure.legend(
        handles=handles, loc="center", bbox_to_anchor=(x, y), ncols=len(handles), frameon=False, fontsize=_FONT_POINTS
    )


def shortened(names: Sequence[str]) -> list[str]:
    """Return names that fit beside the bars: without what all begin with, then without their middles."""
    if max(map(len, names), default=0) <= _LONGEST_NAME:
        return list(names)
    parts = [name.split(".") for name in names]
    shared = 0
    # The last part of a name always stays, and so does a name that stands alone.
    while len(names) > 1 and len({tuple(each[: shared + 1]) for each in parts}) == 1 < min(map(len, parts)) - shared:
        shared += 1
    rest = [".".join(each[shared:]) for each in parts]
    return [_without_middle(f"…{name}" if shared else name) for name in rest]


def _without_middle(name: str) -> str:
    half = (_LONGEST_NAME - 1) // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
