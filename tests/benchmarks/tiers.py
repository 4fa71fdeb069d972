"""Print what each tier of the demo's models costs and gains: quality, latency ratio by batch size, size.

    python tests/benchmarks/tiers.py [--folder serveprune-demo]

Builds what the folder's store lacks, then times every tier against dense in turns, in this one process. A ratio
is dense latency / tier latency: the median of pairs taken within a round, with the 10th and 90th percentile.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import onnxruntime
from timed_tiers import THREADS, machine, open_artifact, quality_cell, samples_of, sessions, speed, speed_cell

from serveprune.artifacts.builder import BuildOutcome, BuildRequest
from serveprune.artifacts.store import Artifact
from serveprune.cli.demo import lay_out
from serveprune.compression.child import SubprocessBuilder
from serveprune.config.loading import load_config
from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.root import ServePruneConfig

BATCH_SIZES = (1, 8, 32)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("serveprune-demo"))
    config = load_config(lay_out(parser.parse_args().folder))
    print(f"{machine()}; ONNX Runtime {onnxruntime.__version__}, {THREADS} thread\n")
    ratios = " | ".join(f"speedup, batch {size}" for size in BATCH_SIZES)
    print(f"| model | tier | quality against dense | batch deviation | {ratios} | size |")
    print("|---" * (5 + len(BATCH_SIZES)) + "|")
    for (name, _), model in config.served().items():
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
        yield (
            name,
            tier,
            quality_cell(artifact),
            f"{measurements.batch_deviation:.4f}",
            *_speedups(model, dense, artifact),
            f"{measurements.dense_bytes / measurements.tier_bytes:.2f}x smaller",
        )


def _speedups(model: ModelConfig, dense: Artifact, tier: Artifact) -> Iterator[str]:
    assert model.evaluation is not None
    with sessions(dense, tier) as (before, after):
        dataset = samples_of(model.evaluation, dense=dense, session=before)
        for size in BATCH_SIZES:
            yield speed_cell(speed(before, after, dataset.typical_batch(size)[1], batch_size=size))


def _artifact(config: ServePruneConfig, name: str, model: ModelConfig, tier: str) -> Artifact:
    request = BuildRequest(model_name=name, model=model, tier=tier, profile=config.profile(tier))
    builder = SubprocessBuilder(config.store, config.builds, threads_of_serving=THREADS)
    result = builder.build(request, on_progress=lambda progress: None, cancelled=Event())
    if result.outcome is BuildOutcome.FAILED or result.key is None:
        raise SystemExit(f"{name} {tier}: {'; '.join(result.reasons)}")
    return open_artifact(config.store.folder, result.key)


if __name__ == "__main__":
    main()
