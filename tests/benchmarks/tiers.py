"""Print what each tier of the demo's models costs and gains: quality, latency ratio by batch size, size.

    python tests/benchmarks/tiers.py [--folder serveprune-demo]

Builds what the folder's store lacks, then times every tier against dense in turns, in this one process. A ratio
is dense latency / tier latency: the median of pairs taken within a round, with the 10th and 90th percentile.
"""

import argparse
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import onnxruntime

from serveprune.artifacts.builder import BuildOutcome, BuildRequest
from serveprune.artifacts.environment import environment
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.cli.demo import lay_out
from serveprune.compression.child import SubprocessBuilder
from serveprune.config.loading import load_config
from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.root import ServePruneConfig
from serveprune.evaluation.dataset import load_dataset
from serveprune.evaluation.latency import measure_latency
from serveprune.preprocessing.loading import load_preprocessor

BATCH_SIZES = (1, 8, 32)
THREADS = 1


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("serveprune-demo"))
    config = load_config(lay_out(parser.parse_args().folder))
    print(f"{_machine()}; ONNX Runtime {onnxruntime.__version__}, {THREADS} thread\n")
    ratios = " | ".join(f"speedup, batch {size}" for size in BATCH_SIZES)
    print(f"| model | tier | quality against dense | batch deviation | {ratios} | size |")
    print("|---" * (5 + len(BATCH_SIZES)) + "|")
    for name, model in config.models.items():
        for row in _rows(config, name, model):
            print("| " + " | ".join(row) + " |", flush=True)


def _rows(config: ServePruneConfig, name: str, model: ModelConfig) -> Iterator[tuple[str, ...]]:
    dense = _artifact(config, name, model, DENSE)
    for tier in model.tiers:
        if tier == DENSE:
            continue
        artifact = _artifact(config, name, model, tier)
        measurements = artifact.manifest.measurements
        assert measurements is not None
        quality = ", ".join(f"{metric} {value:.4f}" for metric, value in measurements.quality.items())
        dense_quality = ", ".join(f"{metric} {value:.4f}" for metric, value in measurements.dense_quality.items())
        yield (
            name,
            tier,
            quality + (f" (dense: {dense_quality})" if dense_quality else ""),
            f"{measurements.batch_deviation:.4f}",
            *_speedups(model, dense, artifact),
            f"{measurements.dense_bytes / measurements.tier_bytes:.2f}x smaller",
        )


def _speedups(model: ModelConfig, dense: Artifact, tier: Artifact) -> Iterator[str]:
    backend = OnnxRuntimeBackend()
    before, after = (backend.load(artifact.graph, threads=THREADS) for artifact in (dense, tier))
    declared = dense.manifest.preprocessing
    preprocessor = load_preprocessor(declared, folder=dense.folder, inputs=before.inputs) if declared else None
    assert model.evaluation is not None
    dataset = load_dataset(model.evaluation, inputs=before.inputs, preprocessor=preprocessor)
    for size in BATCH_SIZES:
        _, feeds = dataset.typical_batch(size)
        record = measure_latency(
            lambda feeds=feeds: before.run(feeds),  # type: ignore[misc]
            lambda feeds=feeds: after.run(feeds),  # type: ignore[misc]
            batch_size=size,
            threads=THREADS,
        )
        yield f"{record.speedup:.2f}x ({1 / record.ratio_high:.2f} to {1 / record.ratio_low:.2f})"


def _artifact(config: ServePruneConfig, name: str, model: ModelConfig, tier: str) -> Artifact:
    request = BuildRequest(model_name=name, model=model, tier=tier, profile=config.profile(tier))
    builder = SubprocessBuilder(config.store, config.builds, threads_of_serving=THREADS)
    result = builder.build(request, on_progress=lambda progress: None, cancelled=Event())
    if result.outcome is BuildOutcome.FAILED or result.key is None:
        raise SystemExit(f"{name} {tier}: {'; '.join(result.reasons)}")
    artifact = ArtifactStore(config.store.path, max_bytes=config.store.max_bytes).open(result.key)
    assert artifact is not None
    return artifact


def _machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    features = [
        feature for feature in environment()["cpu"].split() if feature in ("avx2", "avx512f", "avx512_vnni", "avx_vnni")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {' '.join(features)}"


if __name__ == "__main__":
    main()
