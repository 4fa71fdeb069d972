"""What every table of tiers needs: the machine's name, and a tier's speed against dense, taken in turns."""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from serveprune.artifacts.environment import environment
from serveprune.artifacts.manifest import LatencyRecord
from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.backends.protocol import Session
from serveprune.config.model import DatasetConfig
from serveprune.config.server import StoreConfig
from serveprune.evaluation.dataset import Dataset, load_dataset
from serveprune.evaluation.latency import latency_clock, measure_latency
from serveprune.oip.tensor import Array
from serveprune.preprocessing.loading import load_preprocessor

THREADS = 1


def machine() -> str:
    """Name the processor, its cores and the features that decide kernels."""
    named = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni")
    features = [feature for feature in environment()["cpu"].split() if feature in known]
    return f"{named[0] if named else platform.machine()}, {os.cpu_count()} cores, {' '.join(features)}"


def open_artifact(store: Path, key: str) -> Artifact:
    """Return what a build left in a store."""
    config = StoreConfig(path=store)
    artifact = ArtifactStore(config.folder, max_bytes=config.max_bytes).open(key)
    assert artifact is not None
    return artifact


@contextmanager
def sessions(*artifacts: Artifact) -> Iterator[tuple[Session, ...]]:
    """Load graphs, one thread each."""
    backend = OnnxRuntimeBackend()
    loaded = tuple(backend.load(artifact.graph, threads=THREADS) for artifact in artifacts)
    try:
        yield loaded
    finally:
        for session in loaded:
            session.close()


def samples_of(config: DatasetConfig, *, dense: Artifact, session: Session) -> Dataset:
    """Read a set as the dense graph wants it, texts included."""
    declared = dense.manifest.preprocessing
    preprocessor = load_preprocessor(declared, folder=dense.folder, inputs=session.inputs) if declared else None
    return load_dataset(config, inputs=session.inputs, preprocessor=preprocessor)


def batch_of(dataset: Dataset, *, size: int, tokens: int) -> dict[str, Array]:
    """Return a batch of so many samples; texts are repeated to so many tokens."""
    if not dataset.padding:
        return dataset.typical_batch(size)[1]
    return {
        name: np.stack([np.resize(sample[name], tokens) for sample in dataset.samples[:size]])
        for name in dataset.samples[0]
    }


def speed(before: Session, after: Session, feeds: Mapping[str, Array], *, batch_size: int) -> LatencyRecord:
    """Time a tier against dense for up to 30 seconds, by the processor time of the one thread."""
    return measure_latency(
        lambda: before.run(feeds),
        lambda: after.run(feeds),
        batch_size=batch_size,
        threads=THREADS,
        budget_seconds=30.0,
        clock=latency_clock(THREADS),
    )


def speed_cell(record: LatencyRecord) -> str:
    """Write a speedup with the 10th and 90th percentile of its pairs."""
    return f"{record.speedup:.2f}x ({1 / record.ratio_high:.2f} to {1 / record.ratio_low:.2f})"


def quality_cell(artifact: Artifact) -> str:
    """Write what the build measured on the evaluation set."""
    measurements = artifact.manifest.measurements
    assert measurements is not None
    quality = ", ".join(f"{metric} {value:.4f}" for metric, value in measurements.quality.items())
    dense = ", ".join(f"{metric} {value:.4f}" for metric, value in measurements.dense_quality.items())
    return quality + (f" (dense: {dense})" if dense else "")
