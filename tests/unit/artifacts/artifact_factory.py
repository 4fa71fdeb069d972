"""Artifacts for tests of the store, which never looks inside a graph: its bytes may be any."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import artifact_key, dense_key
from serveprune.artifacts.manifest import (
    FileRecord,
    GraphRecord,
    LatencyRecord,
    Manifest,
    Measurements,
    PassRecord,
    TensorRecord,
)
from serveprune.artifacts.store import Artifact, ArtifactStore, file_records
from serveprune.config.model import Preprocessing
from serveprune.oip.datatype import Datatype

GRAPH = TensorRecord(name="x", datatype=Datatype.FP32, shape=(-1, 4))
MEASUREMENTS = Measurements(
    metric="cosine",
    quality={"cosine": 0.9931, "sqnr_db": 21.5},
    batch_deviation=0.01,
    samples=64,
    evaluation_set="evaluation.jsonl",
    latency=LatencyRecord(
        dense_ms=10.0, tier_ms=5.0, ratio=0.5, ratio_low=0.45, ratio_high=0.55, batch_size=8, rounds=30, threads=1
    ),
    dense_bytes=1000,
    tier_bytes=300,
)


def digest(text: str) -> str:
    """A SHA-256 that stands for a recipe."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_graph(folder: Path, content: bytes) -> dict[str, FileRecord]:
    (folder / "model.onnx").write_bytes(content)
    (folder / "assets").mkdir()
    (folder / "assets" / "tokenizer.json").write_bytes(b"{}")
    return file_records(folder)


def tier_manifest(
    files: Mapping[str, FileRecord],
    *,
    recipe: str = digest("tier"),
    built_in: Mapping[str, str] | None = None,
    created: str = "2026-01-01T00:00:00+00:00",
    **changes: Any,
) -> Manifest:
    built_in = environment() if built_in is None else built_in
    fields: dict[str, Any] = {
        "kind": "tier",
        "key": artifact_key(recipe, built_in),
        "recipe": recipe,
        "environment": built_in,
        "created": created,
        "model": "boots",
        "source": {"onnx": "boots.onnx"},
        "graph": GraphRecord(inputs=(GRAPH,), outputs=(GRAPH,), parameters=1, bytes=1, operators={"Relu": 1}),
        "files": files,
        "seconds": 1.0,
        "dense_key": digest("dense"),
        "passes": (PassRecord(name="quantize", revision=1, options={}, report={}, seconds=1.0),),
        "measurements": MEASUREMENTS,
    }
    return Manifest(**(fields | changes))


def dense_manifest(
    files: Mapping[str, FileRecord], *, recipe: str, preprocessing: Preprocessing | None = None
) -> Manifest:
    return tier_manifest(
        files,
        kind="dense",
        key=dense_key(files, preprocessing=preprocessing),
        recipe=recipe,
        preprocessing=preprocessing,
        dense_key=None,
        passes=(),
        measurements=None,
    )


def commit_tier(
    store: ArtifactStore, name: str = "tier", *, recipe: str | None = None, content: bytes = b"graph", **options: Any
) -> Artifact:
    """Store a tier whose recipe is the digest of ``name``, unless one is given."""
    with store.staging() as folder:
        return store.commit(
            folder, tier_manifest(write_graph(folder, content), recipe=recipe or digest(name), **options)
        )


def commit_dense(
    store: ArtifactStore, name: str = "source", *, content: bytes = b"dense graph", preprocessing: Any = None
) -> Artifact:
    """Store a dense graph and record that importing the source of that name gives it."""
    with store.staging() as folder:
        files = write_graph(folder, content)
        artifact = store.commit(folder, dense_manifest(files, recipe=digest(name), preprocessing=preprocessing))
    store.record_import(digest(name), artifact.key)
    return artifact
