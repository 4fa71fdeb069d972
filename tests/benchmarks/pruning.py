"""Print what structured pruning costs and gains on three real models, by importance, at equal measured latency.

    python tests/benchmarks/pruning.py [--models minilm,fashion,efficientnet] [--folder FOLDER]

Every row asks for the same speedup of one model's dense graph, in ONNX Runtime float32 on one thread, and is
built from unlabelled samples alone; quality is seen on others. A speedup is dense latency / tier latency: the
median of pairs taken in turns, with the 10th and 90th percentile. EfficientNet-Lite0 needs the packages that
`efficientnet.py` names. Without a folder every build begins with nothing; the first of a model also times its layers
and studies its groups, which the others find done where they can share it.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import efficientnet
import onnxruntime
from isolated_build import BuildCost, build_isolated
from timed_tiers import (
    THREADS,
    batch_of,
    machine,
    open_artifact,
    quality_cell,
    samples_of,
    sessions,
    speed,
    speed_cell,
)

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.manifest import LatencyRecord
from serveprune.artifacts.store import Artifact
from serveprune.cli.demo import lay_out
from serveprune.config.loading import load_config
from serveprune.config.model import DatasetConfig, ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.evaluation.comparison import compare
from serveprune.evaluation.dataset import load_dataset
from serveprune.evaluation.task import Task

BATCH_SIZE = 8
TOKENS = 128
MOST_SPREAD = 0.05
"""Rows of one model whose speedups differ by more are not called equal."""

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "reconstruction": {"importance": "reconstruction"},
    "reconstruction, no repair": {"importance": "reconstruction", "repair": []},
    "magnitude": {"importance": "magnitude"},
    "random": {"importance": "random"},
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the speedup it is pruned to, and further inputs it is judged on, with a name for them."""

    model: ModelConfig
    speedup: float
    further: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    variant: str
    speed: LatencyRecord
    quality: str
    cost: BuildCost
    difference: float
    parameters: float

    def cells(self, name: str) -> tuple[str, ...]:
        """Return the line's cells."""
        return (
            name,
            self.variant,
            speed_cell(self.speed),
            self.quality,
            f"{self.parameters:.2f}",
            f"{self.cost.wall_seconds:.0f} s ({self.cost.processor_seconds:.0f} s of processor)",
            f"{self.cost.peak_bytes / 2**30:.2f} GiB",
            f"{self.difference:.1e}",
        )


HEADINGS = (
    "model",
    "importance",
    "measured speedup",
    "quality on held-out inputs",
    "weights left",
    "build",
    "peak memory",
    "largest difference to masked",
)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SUBJECTS), help="Which of them, with commas between.")
    parser.add_argument("--variants", default="/".join(VARIANTS), help="Which rows, with slashes between.")
    parser.add_argument("--samples", type=int, help="Calibration samples of minilm. Default: the demo's 256.")
    parser.add_argument("--folder", type=Path, help="Where things lie. Default: a fresh one, removed afterwards.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = arguments.folder or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        subjects = {name: SUBJECTS[name](folder) for name in arguments.models.split(",")}
        if arguments.samples and "minilm" in subjects:
            subjects["minilm"] = _with_samples(subjects["minilm"], arguments.samples)
        print(f"{machine()}; ONNX Runtime {onnxruntime.__version__}, batch {BATCH_SIZE}, {THREADS} thread\n")
        print("| " + " | ".join(HEADINGS) + " |")
        print("|---" * len(HEADINGS) + "|", flush=True)
        for name, subject in subjects.items():
            speedups = []
            for row in rows(name, subject, variants=arguments.variants.split("/"), store=folder / "store"):
                print("| " + " | ".join(row.cells(f"{name}, {subject.speedup:g}x asked")) + " |", flush=True)
                speedups.append(row.speed.speedup)
            spread = max(speedups) / min(speedups) - 1
            if spread > MOST_SPREAD:
                note = f"latencies are not equal: the fastest row is {spread:.0%} faster than the slowest"
                print(f"| {name} | **{note}** |" + " |" * (len(HEADINGS) - 2), flush=True)


def minilm(folder: Path) -> Subject:
    """The sentence encoder of the demo."""
    return Subject(load_config(lay_out(folder / "demo")).model("minilm"), speedup=1.5, further={})


def fashion(folder: Path) -> Subject:
    """The image classifier of the demo."""
    return Subject(load_config(lay_out(folder / "demo")).model("fashion"), speedup=2.0, further={})


def efficientnet_lite0(folder: Path) -> Subject:
    """An ImageNet classifier with depthwise convolutions, at its own 224 pixels."""
    efficientnet.require_packages()
    learnt, judged, photos = efficientnet.write_images(folder, fashion_samples=128, crops_per_photo=12)
    size = efficientnet.SIZE
    source = {
        "torch": "efficientnet:network",
        "inputs": [{"name": "image", "shape": ["batch", 3, size, size]}],
        "outputs": ["logits"],
    }
    config = {"source": source, "calibration": {"file": learnt}, "evaluation": {"file": judged}}
    return Subject(ModelConfig.model_validate(config), speedup=1.3, further={"photos": photos})


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "minilm": minilm,
    "fashion": fashion,
    "efficientnet": efficientnet_lite0,
}


def _with_samples(subject: Subject, samples: int) -> Subject:
    assert subject.model.calibration is not None
    calibration = subject.model.calibration.model_copy(update={"samples": samples})
    return Subject(subject.model.model_copy(update={"calibration": calibration}), subject.speedup, subject.further)


def rows(name: str, subject: Subject, *, variants: list[str], store: Path) -> Iterator[Row]:
    """Build and judge one tier after the other."""
    dense_request = BuildRequest(model_name=name, model=subject.model)
    dense = open_artifact(store, build_isolated(dense_request, store=store, threads_of_serving=THREADS).key)
    for variant in variants:
        request = BuildRequest(
            model_name=name, model=subject.model, tier="lean", profile=_profile(subject, VARIANTS[variant])
        )
        cost = build_isolated(request, store=store, threads_of_serving=THREADS)
        tier = open_artifact(store, cost.key)
        latency, further = _judged(subject, dense, tier)
        yield Row(
            variant,
            latency,
            ", ".join([quality_cell(tier), *further]),
            cost,
            difference=tier.manifest.passes[0].report["masked_equivalence"],
            parameters=tier.manifest.graph.bytes / dense.manifest.graph.bytes,
        )


def _profile(subject: Subject, options: Mapping[str, object]) -> ProfileConfig:
    workload = {"batch_size": BATCH_SIZE, "length": TOKENS}
    prune = {"target": {"speedup": subject.speedup}, "workload": workload, **options}
    return ProfileConfig.model_validate({"passes": [{"prune": prune}]})


def _judged(subject: Subject, dense: Artifact, tier: Artifact) -> tuple[LatencyRecord, list[str]]:
    """Return the speed, and top-1 agreement on the further inputs."""
    assert subject.model.evaluation is not None
    with sessions(dense, tier) as (before, after):
        dataset = samples_of(subject.model.evaluation, dense=dense, session=before)
        feeds = batch_of(dataset, size=BATCH_SIZE, tokens=TOKENS)
        latency = speed(before, after, feeds, batch_size=BATCH_SIZE)
        further = []
        for name, file in subject.further.items():
            shown = load_dataset(DatasetConfig(file=file), inputs=before.inputs, preprocessor=None)
            comparison = compare(
                before,
                after,
                shown,
                task=Task.CLASSIFICATION,
                batch_size=BATCH_SIZE,
                on_progress=lambda fraction: None,
            )
            further += [f"{metric} {value:.4f} ({name})" for metric, value in comparison.quality.items()]
        return latency, further


if __name__ == "__main__":
    main()
