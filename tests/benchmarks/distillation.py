"""Print what learning wins back past the reach of closed-form repair, and what int8 on top of it gives.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
    python tests/benchmarks/distillation.py --data fashion/usr/share/datasets/fashion-mnist [--models minilm,fashion]

MiniLM is pruned to a measured 2x (batch 8 x 128 tokens, one thread, ONNX Runtime float32) and learns from dense on
7,852 unlabelled movie snippets; it is judged on 2,752 others: by the cosine to dense, and by the accuracy of a
logistic head on each tier's embeddings (fitted on the labelled snippets of the first part). The demo's image
classifier is pruned to 2x and learns on 10,000 unlabelled training images; it is judged on the 10,000 test images.
`--seconds` bounds learning alone; the image classifier gets a fifth of it.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from fashion_images import HOW_TO_GET_THE_DATA, write_images
from isolated_build import build_isolated
from snippets import Snippet, read_snippets
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
from serveprune.artifacts.store import Artifact
from serveprune.backends.protocol import Session
from serveprune.cli.demo import lay_out
from serveprune.config.loading import load_config
from serveprune.config.model import DatasetConfig, ModelConfig
from serveprune.config.profile import ProfileConfig
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

BATCH_SIZE = 8
TOKENS = 128
_DECAY = 1e-5
SPEEDUPS: Mapping[str, float] = {"minilm": 2.0, "fashion": 2.0}
SHARES: Mapping[str, float] = {"minilm": 1.0, "fashion": 0.2}
"""Of the seconds of learning."""
HEADINGS = ("model", "tier", "measured speedup", "quality on held-out inputs", "accuracy of a head", "build")


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SPEEDUPS), help="Which of them, with commas between.")
    parser.add_argument("--data", type=Path, help=HOW_TO_GET_THE_DATA)
    parser.add_argument("--folder", type=Path, help="Where things lie. Default: a fresh one, removed afterwards.")
    parser.add_argument("--seconds", type=float, default=600.0, help="Of learning, per model.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = arguments.folder or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{machine()}; ONNX Runtime {onnxruntime.__version__}, batch {BATCH_SIZE}, {THREADS} thread\n")
        print("| " + " | ".join(HEADINGS) + " |")
        print("|---" * len(HEADINGS) + "|", flush=True)
        for name in arguments.models.split(","):
            for row in rows(name, folder=folder, data=arguments.data, seconds=arguments.seconds * SHARES[name]):
                print("| " + " | ".join(row) + " |", flush=True)


def profiles(speedup: float, *, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Return the passes of each tier; each goes on from the one before it."""
    prune = {"prune": {"target": {"speedup": speedup}, "workload": {"batch_size": BATCH_SIZE, "length": TOKENS}}}
    distill = {"distill": {"budget": {"seconds": seconds}}}
    quantize = {"quantize": {"dtype": "int8", "scheme": "auto"}}
    return {
        "pruned": [prune],
        "pruned, distilled": [prune, distill],
        "pruned, distilled, int8": [prune, distill, quantize],
    }


def rows(name: str, *, folder: Path, data: Path | None, seconds: float) -> Iterator[Sequence[str]]:
    """Build and judge one tier after the other."""
    model, head = _subject(name, folder, data)
    store = folder / "store"
    request = BuildRequest(model_name=name, model=model)
    dense = open_artifact(store, build_isolated(request, store=store, threads_of_serving=THREADS).key)
    if head is not None:
        yield (name, "dense", "1x", "", f"{head.accuracy(dense, dense=dense):.4f}", "")
    for tier, passes in profiles(SPEEDUPS[name], seconds=seconds).items():
        profile = ProfileConfig.model_validate({"passes": passes})
        request = BuildRequest(model_name=name, model=model, tier="tier", profile=profile)
        cost = build_isolated(request, store=store, threads_of_serving=THREADS)
        artifact = open_artifact(store, cost.key)
        assert model.evaluation is not None
        with sessions(dense, artifact) as (before, after):
            feeds = batch_of(samples_of(model.evaluation, dense=dense, session=before), size=BATCH_SIZE, tokens=TOKENS)
            record = speed(before, after, feeds, batch_size=BATCH_SIZE)
        yield (
            name,
            tier,
            speed_cell(record),
            quality_cell(artifact),
            f"{head.accuracy(artifact, dense=dense):.4f}" if head is not None else "",
            f"{cost.wall_seconds:.0f} s, {cost.peak_bytes / 2**30:.2f} GiB",
        )


class Head:
    """A logistic classifier on embeddings of labelled snippets."""

    def __init__(self, learnt: Path, judged: Path, *, learnt_labels: list[bool], judged_labels: list[bool]) -> None:
        """Note the texts and whether they speak in favour."""
        self._sets = (learnt, judged)
        self._labels = (learnt_labels, judged_labels)

    def accuracy(self, tier: Artifact, *, dense: Artifact) -> float:
        """Fit on one set's embeddings by this tier, and return the accuracy on the other's."""
        with sessions(tier) as (session,):
            learnt, judged = (
                _embeddings(session, samples_of(_set(path), dense=dense, session=session)) for path in self._sets
            )
        weight, bias = _logistic_fit(learnt, self._labels[0])
        return float(np.mean((judged @ weight + bias > 0) == np.array(self._labels[1])))


def _logistic_fit(rows: Array, labels: Sequence[bool]) -> tuple[Array, float]:
    inputs, targets = torch.from_numpy(rows), torch.tensor(labels, dtype=torch.float32)
    weight = torch.zeros(inputs.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = inputs @ weight + bias
        total = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets) + _DECAY * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().numpy(), float(bias)


def _embeddings(session: Session, dataset: Dataset) -> Array:
    found: dict[int, Array] = {}
    for indices, feeds in dataset.batches(BATCH_SIZE):
        (embeddings,) = session.run(feeds)
        found.update(zip(indices.tolist(), embeddings, strict=True))
    return np.stack([found[index] for index in range(len(dataset))])


def _subject(name: str, folder: Path, data: Path | None) -> tuple[ModelConfig, Head | None]:
    model = load_config(lay_out(folder / "demo")).model(name)
    if name == "fashion":
        if data is None:
            raise SystemExit(f"--data: {HOW_TO_GET_THE_DATA}")
        learnt_images = write_images(folder, data, split="train", samples=10_000, labelled=False)
        judged_images = write_images(folder, data, split="t10k", samples=10_000)
        return model.model_copy(update={"calibration": _set(learnt_images), "evaluation": _set(judged_images)}), None
    learnt, held_out = read_snippets(folder)
    labelled = [snippet for snippet in learnt if snippet.positive is not None]
    files = {"learnt": learnt, "labelled": labelled, "held_out": held_out}
    paths = {part: _write(folder / f"snippets_{part}.jsonl", snippets) for part, snippets in files.items()}
    sets = {"calibration": _set(paths["learnt"]), "evaluation": _set(paths["held_out"])}
    head = Head(
        paths["labelled"],
        paths["held_out"],
        learnt_labels=[bool(snippet.positive) for snippet in labelled],
        judged_labels=[bool(snippet.positive) for snippet in held_out],
    )
    return model.model_copy(update=sets), head


def _set(path: Path) -> DatasetConfig:
    return DatasetConfig(file=path)


def _write(path: Path, snippets: Sequence[Snippet]) -> Path:
    path.write_text("".join(json.dumps({"text": snippet.text}) + "\n" for snippet in snippets))
    return path


if __name__ == "__main__":
    main()
