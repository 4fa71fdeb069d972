"""Print what setting single weights to zero costs in quality and saves on disk, by method and sparsity.

    python tests/benchmarks/sparsity.py [--models minilm,fashion] [--sparsities 0.5,0.9,2:4] [--folder FOLDER]

Every row is a tier built from the demo's unlabelled samples and judged on others, as `serveprune compress` does. Bytes
are those of the stored graph's file. Zeros are counted in it: of the weights that may have some, and of all.
Speedup is dense latency / tier latency in ONNX Runtime on one thread, where zeros are worth nothing by themselves.
Without a folder every build begins with nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import onnxruntime
from isolated_build import build_isolated
from timed_tiers import THREADS, machine, open_artifact, quality_cell

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.store import Artifact
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.cli.demo import lay_out
from serveprune.config.loading import load_config
from serveprune.config.model import ModelConfig
from serveprune.config.profile import ProfileConfig

MODELS = ("fashion", "minilm")
METHODS = ("magnitude", "wanda", "reconstruction")
SPARSITIES = ("0.5", "0.7", "0.9", "2:4")
WANTED_SPARSITY, WANTED_BYTES = 0.9, 0.25
"""At so many zeros the artifact is to have so few of dense's bytes."""

HEADINGS = ("model", "importance", "asked", "zeros", "of all", "quality", "bytes / dense", "speedup", "load", "build")


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="Which of them, with commas between.")
    parser.add_argument("--methods", default=",".join(METHODS), help="Which importances, with commas between.")
    parser.add_argument("--sparsities", default=",".join(SPARSITIES), help="Shares of zeros, or patterns N:M.")
    parser.add_argument("--folder", type=Path, help="Where things lie. Default: a fresh one, removed afterwards.")
    arguments = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as fresh:
        folder = arguments.folder or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        config = load_config(lay_out(folder / "demo"))
        print(f"{machine()}; ONNX Runtime {onnxruntime.__version__}, {THREADS} thread\n")
        print("| " + " | ".join(HEADINGS) + " |")
        print("|---" * len(HEADINGS) + "|", flush=True)
        for name in arguments.models.split(","):
            for method in arguments.methods.split(","):
                for asked in arguments.sparsities.split(","):
                    cells, ratio = row(name, config.model(name), method, asked, store=folder / "store")
                    print("| " + " | ".join(cells) + " |", flush=True)
                    if ":" not in asked and float(asked) >= WANTED_SPARSITY and ratio > WANTED_BYTES:
                        missed.append(f"{name} {method} {asked}: {ratio:.3f}")
    told = f"more than {WANTED_BYTES:.0%} of dense bytes: {', '.join(missed)}" if missed else "every such row does"
    print(f"\nat {WANTED_SPARSITY:.0%} zeros the artifact is to have at most {WANTED_BYTES:.0%} of dense bytes; {told}")


def row(name: str, model: ModelConfig, method: str, asked: str, *, store: Path) -> tuple[tuple[str, ...], float]:
    """Build and judge one tier; return its cells, and its bytes / dense bytes."""
    wish: dict[str, Any] = {"pattern": asked} if ":" in asked else {"target": {"sparsity": float(asked)}}
    prune = {"structure": "weights", "importance": method, **wish}
    request = BuildRequest(
        model_name=name,
        model=model,
        tier="sparse",
        profile=ProfileConfig.model_validate({"passes": [{"prune": prune}]}),
    )
    cost = build_isolated(request, store=store, threads_of_serving=THREADS)
    tier = open_artifact(store, cost.key)
    measured, report = tier.manifest.measurements, tier.manifest.passes[0].report
    assert measured is not None
    ratio = measured.tier_bytes / measured.dense_bytes
    dense = open_artifact(store, tier.manifest.dense_key or "")
    cells = (
        name,
        method,
        asked,
        f"{report['sparsity']:.1%}",
        f"{report['sparsity_of_all_weights']:.1%}",
        quality_cell(tier),
        f"{ratio:.3f}",
        f"{measured.latency.speedup:.2f}x",
        " / ".join(f"{seconds * 1000:.0f} ms" for seconds in _load_seconds(tier, dense)),
        f"{cost.wall_seconds:.0f} s",
    )
    return cells, ratio


def _load_seconds(*artifacts: Artifact) -> Iterator[float]:
    """Yield the least of three times to load each artifact, unpacking included."""
    for artifact in artifacts:
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            with closing(OnnxRuntimeBackend().load(artifact.graph, threads=THREADS)):
                taken.append(time.perf_counter() - started)
        yield min(taken)


if __name__ == "__main__":
    main()
