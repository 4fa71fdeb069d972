"""Draws docs/pruning.svg, the one picture of docs/pruning.md.

Usage: python deploy/draw_pruning.py [FILE]
"""

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

TARGET = Path(__file__).resolve().parent.parent / "docs" / "pruning.svg"

BLUE, ORANGE, GREEN, GREY, PALE, INK, FAINT = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#8C8C8C",
    "#E9EDF1",
    "#222222",
    "#666666",
)
UNITS, GOING = 6, (1, 4)
CELL = 0.2


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    # The same picture gives the same bytes; letters are drawn, so it looks the same without the fonts.
    mpl.rcParams.update({"svg.hashsalt": "serveprune", "font.size": 9})
    figure = Figure(figsize=(11, 7.8), facecolor="white")
    couple(panel(figure, (0.02, 0.40, 0.96, 0.59), (10.56, 4.6)))
    panels = ((allocate, 0.265), (cut, 0.515), (repair, 0.765))
    rank(panel(figure, (0.02, 0.01, 0.23, 0.34), (2.53, 2.66)))
    for draw, left in panels:
        draw(panel(figure, (left, 0.01, 0.23, 0.34), (2.53, 2.66)))
    metadata = {"Date": None} if target.suffix == ".svg" else None
    figure.savefig(target, dpi=110, metadata=metadata)


def panel(figure: Figure, place: tuple[float, float, float, float], size: tuple[float, float]) -> Axes:
    """Return axes without a frame whose unit is about an inch."""
    axes = figure.add_axes(place)
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axes.axis("off")
    return axes


def title(axes: Axes, number: int, name: str, told: str, *, top: float) -> None:
    axes.text(0.02, top, f"{number}  {name}", fontsize=11.5, fontweight="bold", color=INK, va="top")
    axes.text(0.02, top - 0.27, told, fontsize=8.5, color=FAINT, va="top", linespacing=1.35)


def couple(axes: Axes) -> None:
    """The graph: two convolutions whose outputs are added, one that reads the sum, and the answer."""
    title(
        axes,
        1,
        "Couple",
        "Every axis of a weight is a row of units, and operators join them: the Add ties the outputs of A and B, and C "
        "sums over them.\nA unit is all that has to go together: orange, here two of six. What reaches an answer, or "
        "an operator without a rule, is pinned.",
        top=4.56,
    )
    box(axes, 0.25, 1.6, "input", GREY)
    matrix(axes, 2.0, 2.28, rows=UNITS, columns=4, name="Conv A", rows_go=True)
    matrix(axes, 2.0, 0.18, rows=UNITS, columns=4, name="Conv B", rows_go=True)
    strip(axes, 3.15, 2.28, "bias")
    strip(axes, 3.15, 0.18, "bias")
    box(axes, 5.0, 1.6, "Add, Relu", INK)
    matrix(axes, 6.95, 1.42, rows=5, columns=UNITS, name="Conv C", columns_go=True)
    box(axes, 9.3, 1.6, "answer", GREY)
    arrow(axes, (1.18, 1.86), (1.85, 2.7))
    arrow(axes, (1.18, 1.7), (1.85, 0.9))
    arrow(axes, (3.6, 2.75), (4.92, 1.95))
    arrow(axes, (3.6, 0.85), (4.92, 1.6))
    arrow(axes, (5.98, 1.78), (6.82, 1.78))
    arrow(axes, (8.3, 1.78), (9.2, 1.78))
    axes.text(4.4, 2.62, "6 units", color=BLUE, ha="center")
    axes.text(4.4, 0.85, "6 units", color=BLUE, ha="center")
    axes.text(6.4, 1.92, "the same 6", color=BLUE, ha="center")
    axes.text(9.72, 1.33, "pinned", color=FAINT, ha="center", fontsize=8.5)
    axes.text(2.4, -0.02, "rows: output channels", color=FAINT, ha="center", fontsize=8, va="top")
    axes.text(7.55, 1.2, "columns: input channels", color=FAINT, ha="center", fontsize=8, va="top")


def rank(axes: Axes) -> None:
    """Error that stays when a unit goes and the others make up for it."""
    title(axes, 2, "Rank", "What is lost without a unit once the\nothers make up for it as well as they can.", top=2.64)
    heights = (1.05, 0.2, 0.7, 0.92, 0.12, 0.55)
    for index, height in enumerate(heights):
        gone = index in GOING
        axes.add_patch(
            Rectangle((0.25 + 0.34 * index, 0.42), 0.24, height, color=ORANGE if gone else BLUE, linewidth=0)
        )
        axes.text(0.37 + 0.34 * index, 0.34, str(index + 1), ha="center", va="top", fontsize=8, color=FAINT)
    axes.plot([0.15, 2.35], [0.42, 0.42], color=FAINT, linewidth=0.7)
    axes.text(1.25, 0.14, "from unlabelled samples, no gradients", ha="center", va="top", fontsize=8, color=FAINT)


def allocate(axes: Axes) -> None:
    """Time by width is a staircase; error falls with width."""
    title(
        axes,
        3,
        "Allocate",
        "Every width is timed on this machine; the\nleast error within the time allowed wins.",
        top=2.64,
    )
    xs = [0.3, 0.7, 0.7, 1.1, 1.1, 1.5, 1.5, 1.9, 1.9, 2.3]
    ys = [0.62, 0.62, 0.72, 0.72, 1.02, 1.02, 1.14, 1.14, 1.48, 1.48]
    axes.plot(xs, ys, color=INK, linewidth=1.4)
    points = [0.3 + 0.05 * index for index in range(41)]
    axes.plot(points, [0.5 + 1.05 * ((2.35 - x) / 2.05) ** 3 for x in points], color=BLUE, linewidth=1.4)
    axes.plot([0.25, 0.25, 2.4], [1.65, 0.42, 0.42], color=FAINT, linewidth=0.7)
    axes.plot([1.1, 1.1], [0.42, 0.72], color=ORANGE, linewidth=1.2, linestyle=":")
    axes.plot([1.1], [0.72], "o", color=ORANGE, markersize=5)
    axes.text(2.32, 1.56, "ms", ha="right", color=INK, fontsize=8.5)
    axes.text(0.5, 1.52, "error", color=BLUE, fontsize=8.5)
    axes.text(1.3, 0.34, "width of one group", ha="center", va="top", fontsize=8, color=FAINT)


def cut(axes: Axes) -> None:
    """The small graph computes what the masked one does."""
    title(
        axes,
        4,
        "Cut, and prove it",
        "The small graph must compute what the\nbig one does with those units set to zero.",
        top=2.64,
    )
    for index in range(UNITS):
        gone = index in GOING
        axes.add_patch(
            Rectangle(
                (0.15, 0.5 + CELL * (UNITS - 1 - index)), 0.75, CELL * 0.88, color=PALE if gone else BLUE, linewidth=0
            )
        )
        if gone:
            axes.text(0.52, 0.58 + CELL * (UNITS - 1 - index), "0", ha="center", va="center", fontsize=8, color=ORANGE)
    for index in range(UNITS - len(GOING)):
        axes.add_patch(Rectangle((1.55, 0.7 + CELL * index), 0.75, CELL * 0.88, color=BLUE, linewidth=0))
    axes.text(1.22, 1.08, "=", ha="center", va="center", fontsize=17, color=INK)
    axes.text(0.52, 0.42, "masked", ha="center", va="top", fontsize=8, color=FAINT)
    axes.text(1.92, 0.42, "pruned", ha="center", va="top", fontsize=8, color=FAINT)
    axes.text(1.25, 0.17, "checked in every build, to 1e-4", ha="center", va="top", fontsize=8, color=FAINT)


def repair(axes: Axes) -> None:
    """Layer after layer, weights are fitted to what the dense graph gave."""
    title(
        axes,
        5,
        "Repair",
        "Layer after layer, the weights that are left\nare fitted to what the dense graph gave.",
        top=2.64,
    )
    for index in range(3):
        left = 0.2 + 0.75 * index
        done = index < 2
        axes.add_patch(Rectangle((left, 0.75), 0.5, 0.75, facecolor=GREEN if done else PALE, edgecolor="none"))
        axes.text(left + 0.25, 1.12, f"W{index + 1}", ha="center", va="center", color="white" if done else FAINT)
        if index:
            arrow(axes, (left - 0.25, 1.12), (left, 1.12))
    axes.text(
        1.2, 0.62, "inputs: as the pruned layers before give them", ha="center", va="top", fontsize=7.6, color=FAINT
    )
    axes.text(1.2, 0.42, "outputs: as the dense graph gives them", ha="center", va="top", fontsize=7.6, color=FAINT)
    axes.text(1.2, 0.17, "one linear solve a layer", ha="center", va="top", fontsize=8, color=FAINT)


def matrix(
    axes: Axes,
    x: float,
    y: float,
    *,
    rows: int,
    columns: int,
    name: str,
    rows_go: bool = False,
    columns_go: bool = False,
) -> None:
    """Draw a weight as cells; the first row is on top."""
    for row in range(rows):
        for column in range(columns):
            gone = (rows_go and row in GOING) or (columns_go and column in GOING)
            corner = (x + CELL * column, y + CELL * (rows - 1 - row))
            axes.add_patch(Rectangle(corner, CELL * 0.9, CELL * 0.9, color=ORANGE if gone else BLUE, linewidth=0))
    axes.text(x + CELL * columns / 2, y + CELL * rows + 0.04, name, ha="center", va="bottom", color=INK)


def strip(axes: Axes, x: float, y: float, name: str) -> None:
    """Draw a weight with one axis."""
    for row in range(UNITS):
        corner = (x, y + CELL * (UNITS - 1 - row))
        axes.add_patch(Rectangle(corner, CELL * 0.9, CELL * 0.9, color=ORANGE if row in GOING else BLUE, linewidth=0))
    axes.text(x + CELL / 2, y + CELL * UNITS + 0.04, name, ha="center", va="bottom", color=INK)


def box(axes: Axes, x: float, y: float, name: str, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), 0.9, 0.36, facecolor="white", edgecolor=colour, linewidth=1.2))
    axes.text(x + 0.45, y + 0.17, name, ha="center", va="center", color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=GREY, linewidth=1.1))


if __name__ == "__main__":
    main()
