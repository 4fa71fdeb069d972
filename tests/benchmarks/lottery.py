"""Print sparsity against accuracy of lottery tickets of the demo's Fashion-MNIST network, trained from nothing here.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
    python tests/benchmarks/lottery.py --data fashion/usr/share/datasets/fashion-mnist [--plot lottery.svg]

A real build of a tier with a `lottery` pass: iterative magnitude pruning with rewinding to an early step, and the same
masks with random re-initialization as the control. Everything random has a fixed seed, so the table is the same on
every run of one machine. The last lines say whether the effect is there.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fashion_images import HOW_TO_GET_THE_DATA, write_images
from isolated_build import build_isolated
from rich.console import Console

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.store import ArtifactStore
from serveprune.cli.lottery_picture import write_lottery_picture
from serveprune.cli.lottery_table import show_lottery
from serveprune.compression.lottery.report import LotteryReport, LotteryRound
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.config.server import StoreConfig

SAMPLES = 16_000
"""Of the 60,000 training images: half is learned from, an eighth chooses weights, the rest is for the table."""

RECIPE: Mapping[str, Any] = {
    # Four rounds that each keep sqrt(0.2) of what is left: 55, 80, 91 and 96 %.
    "rounds": 4,
    "sparsity": 0.96,
    "rewind": {"step": 30},
    "accuracy_loss": 0.01,
    "held_out": 0.5,
    "training": {
        "budget": {"epochs": 2},
        "optimizer": "sgd",
        "learning_rate": 0.03,
        "batch_size": 64,
        "warmup_ratio": 0.1,
        "validations": 2,
    },
}
JUDGED_SPARSITY, MOST_LOST = 0.8, 0.01
VISIBLE = 2.0
"""Standard errors between the ticket and its mask with random weights."""


def main() -> None:
    """Build, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=HOW_TO_GET_THE_DATA)
    parser.add_argument("--seed", type=int, default=0, help="Of the whole lottery.")
    parser.add_argument("--folder", type=Path, help="Where things lie. Default: a fresh one, removed afterwards.")
    parser.add_argument("--plot", type=Path, help="Draw the table into this .png, .svg or .pdf file.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = (arguments.folder or Path(fresh)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        report = draw(folder, data=arguments.data, seed=arguments.seed)
        show_lottery(report, Console(highlight=False, width=140), title="Fashion-MNIST network")
        for line in verdict(report):
            print(line)
        print(f"{time.monotonic() - started:.0f} s")
        if arguments.plot is not None:
            write_lottery_picture(report, arguments.plot, title="Lottery tickets of the Fashion-MNIST network")


def draw(folder: Path, *, data: Path, seed: int) -> LotteryReport:
    """Build the tier, or find it in the folder's store, and return its table."""
    with resources.as_file(resources.files("serveprune.demo") / "fashion.onnx") as graph:
        model = ModelConfig.model_validate(
            {
                "source": {"onnx": graph},
                "calibration": {"file": write_images(folder, data, split="train", samples=SAMPLES)},
                "evaluation": {"file": write_images(folder, data, split="t10k", samples=10_000)},
            }
        )
        recipe = {**RECIPE, "training": {**RECIPE["training"], "seed": seed}}
        request = BuildRequest(
            model_name="fashion",
            model=model,
            tier="ticket",
            profile=ProfileConfig.model_validate({"passes": [{"lottery": recipe}]}),
        )
        cost = build_isolated(request, store=folder / "store", threads_of_serving=1)
    config = StoreConfig(path=folder / "store")
    tier = ArtifactStore(config.folder, max_bytes=config.max_bytes).open(cost.key)
    assert tier is not None
    measured = tier.manifest.measurements
    assert measured is not None
    print(f"the tier on the 10,000 test images: accuracy {measured.quality['accuracy']:.4f}")
    print(f"build: {cost.wall_seconds:.0f} s, {cost.processor_seconds:.0f} s of processor")
    return LotteryReport.model_validate(tier.manifest.passes[0].report)


def verdict(report: LotteryReport) -> list[str]:
    """Return whether the ticket learns as well as dense, and its mask with other weights visibly worse."""
    found = min(report.rounds, key=lambda each: abs(each.sparsity - JUDGED_SPARSITY))
    lost, gap = report.dense.accuracy - found.ticket.accuracy, _gap(found)
    close = f"ticket at {found.sparsity:.1%}: {100 * lost:+.2f} points lost against dense, expected at most "
    visible = VISIBLE * report.standard_error(found.ticket.accuracy)
    apart = f"the same mask with random weights: {100 * gap:.2f} points below the ticket, expected at least "
    return [
        f"{close}{100 * MOST_LOST:g}: {'yes' if lost <= MOST_LOST else 'NO'}",
        f"{apart}{100 * visible:.2f}: {'yes' if gap >= visible else 'NO'}",
    ]


def _gap(found: LotteryRound) -> float:
    assert found.reinitialized is not None
    return found.ticket.accuracy - found.reinitialized.accuracy


if __name__ == "__main__":
    main()
