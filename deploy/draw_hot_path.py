"""Draws docs/hot_path.svg: which stages of a request take the interpreter's time, by protocol.

Usage: python deploy/draw_hot_path.py [--py-spy PATH] [--stacks FOLDER] [FILE]

Serves a small network, loads it over each protocol, and has py-spy sample which thread holds the interpreter's lock,
and where: see tests/benchmarks/hot_path.py, which needs wrk and h2load. With `--stacks`, draws what an earlier run
of it has left in a folder.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "hot_path.svg"
CONNECTIONS = 32
SECONDS = 20

INK, FAINT = "#222222", "#666666"
DARK = ("#0072B2", "#009E73", "#D55E00", "#8C5FA8")
REST = "everything else"
STAGES: Mapping[str, str] = {
    "connection, parsing": "#0072B2",
    "decode": "#56B4E9",
    "admit, route, check": "#009E73",
    "queue, hand over": "#F0E442",
    "batch, run, split": "#D55E00",
    "count, complete": "#E69F00",
    "encode": "#CC79A7",
    "send": "#8C5FA8",
    REST: "#BDBDBD",
}
RULES: Sequence[tuple[str, str]] = (
    # The first frame from the innermost outwards that fits one of these, in this order, decides.
    (r"(Connection\._write|_status) \(", "send"),
    (r"(encode\w*|head|is_large|_content_bytes|_tier_metadata) \(serveprune/(frontends|oip)/", "encode"),
    (r"\w*(decode|parse_message|parse_object)\w* \(serveprune/(frontends|oip)/", "decode"),
    (r"\(serveprune/(oip/(json|binary|parameters|datatype)|frontends/grpc/decoding)", "decode"),
    (r"(parse_headers|find_route)\b.*\(serveprune/frontends/http/", "connection, parsing"),
    (r"\(serveprune/(backends/|models/|scheduling/(collat|padding|gather|batch))", "batch, run, split"),
    (r"(Scheduler\._(run|answers|in_slices|still_wanted)\w*|_tell|_end) \(serveprune/scheduling/", "batch, run, split"),
    (r"\(serveprune/scheduling/", "queue, hand over"),
    (r"(DataPlane\._(finish|computed|code|response)\w*|_response) \(serveprune/serving/", "count, complete"),
    (r"\(prometheus_client/", "count, complete"),
    (r"DataPlane\._queue\b", "queue, hand over"),
    (r"\(serveprune/(serving|routing)/", "admit, route, check"),
    (r"\(serveprune/frontends/(http/(completions|direct_exchange)|grpc/direct_calls?)", "connection, parsing"),
    (r"\(serveprune/frontends/http/(connection|direct_inference|deadline|reply)", "connection, parsing"),
    (r"\(grpc/", "connection, parsing"),
    # What is left of its thread is the event loop's own.
    (r"Runner\.run |^thread .*http$", "connection, parsing"),
    (r"^thread .*executor", "queue, hand over"),
)
BARS: Sequence[tuple[str, str]] = (("json", "HTTP, JSON"), ("binary", "HTTP, binary"), ("grpc", "gRPC"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--py-spy", default="py-spy", help="the program, if it is not on the path")
    parser.add_argument("--stacks", type=Path, help="folder of an earlier run")
    parser.add_argument("file", nargs="?", type=Path, default=TARGET)
    arguments = parser.parse_args()
    if arguments.stacks is not None:
        draw(shares_in(arguments.stacks), arguments.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT / "tests" / "benchmarks" / "hot_path.py"
        command = [sys.executable, str(script), "--connections", str(CONNECTIONS), "--seconds", str(SECONDS)]
        subprocess.run([*command, "--profile", folder, "--py-spy", arguments.py_spy], check=True)
        draw(shares_in(Path(folder)), arguments.file)


def shares_in(folder: Path) -> list[tuple[str, Mapping[str, float]]]:
    """Return the share of each stage, by protocol."""
    bars: list[tuple[str, Mapping[str, float]]] = []
    for protocol, label in BARS:
        stacks = folder / f"mlp-{protocol}-{CONNECTIONS}.txt"
        counts: Counter[str] = Counter()
        for line in stacks.read_text(encoding="utf-8").splitlines():
            stack, _, samples = line.rpartition(" ")
            counts[stage_of(stack.split(";"))] += int(samples)
        bars.append((label, {stage: counts[stage] / counts.total() for stage in STAGES}))
    return bars


def stage_of(frames: Sequence[str]) -> str:
    """Return the stage a stack belongs to; frames come outermost first."""
    for frame in reversed(frames):
        for pattern, stage in RULES:
            if re.search(pattern, frame):
                return stage
    return REST


def draw(bars: Sequence[tuple[str, Mapping[str, float]]], target: Path) -> None:
    # The same samples give the same bytes; letters are drawn, so it looks the same without the fonts.
    mpl.rcParams.update({"svg.hashsalt": "serveprune", "font.size": 10})
    figure = Figure(figsize=(11, 4.2), facecolor="white")
    axes = figure.add_axes((0.11, 0.2, 0.87, 0.62))
    for row, (label, shares) in enumerate(bars):
        draw_bar(axes, row, label, shares)
    axes.set(xlim=(0, 1), ylim=(len(bars) - 0.5, -0.5), yticks=[], xticks=[])
    axes.set_frame_on(False)
    figure.text(0.02, 0.94, "Where the interpreter's time goes", fontsize=13, fontweight="bold", color=INK)
    told = "One row of 64 floats through a network of 64-256-256-10; samples of the thread that holds the lock"
    figure.text(0.02, 0.875, told, fontsize=9.5, color=FAINT)
    keys = [mpl.patches.Patch(color=color, label=stage) for stage, color in STAGES.items()]
    figure.legend(handles=keys, loc="lower center", ncols=5, frameon=False, fontsize=9.5)
    metadata = {"Date": None} if target.suffix == ".svg" else None
    figure.savefig(target, dpi=110, metadata=metadata)


def draw_bar(axes: Axes, row: int, label: str, shares: Mapping[str, float]) -> None:
    axes.text(-0.01, row, label, ha="right", va="center", fontsize=11, color=INK)
    left = 0.0
    for stage, share in shares.items():
        axes.barh(row, share, left=left, height=0.72, color=STAGES[stage], edgecolor="white", linewidth=1)
        if share >= 0.025:
            color = "white" if STAGES[stage] in DARK else INK
            axes.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=10, color=color)
        left += share


if __name__ == "__main__":
    main()
