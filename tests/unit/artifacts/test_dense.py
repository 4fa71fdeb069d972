from pathlib import Path

import pytest
from unit.artifacts.artifact_factory import commit_dense, commit_tier

from serveprune.artifacts.dense import dense_of
from serveprune.artifacts.key import source_recipe
from serveprune.artifacts.store import ArtifactStore
from serveprune.config.model import ArtifactSource, ModelConfig, OnnxSource
from serveprune.errors import InvalidArgument


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=2**30)


def named(key: str) -> ModelConfig:
    return ModelConfig(source=ArtifactSource(artifact=key))


def test_graph_is_found_by_its_key_or_by_what_it_was_imported_from(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"a graph")
    model = ModelConfig(source=OnnxSource(onnx=file))
    assert dense_of(store, model) is None

    stored = commit_dense(store)
    store.record_import(source_recipe(model), stored.key)

    assert dense_of(store, model) == stored
    assert dense_of(store, named(stored.key)) == stored


def test_nothing_is_found_when_the_key_is_of_nothing(store: ArtifactStore) -> None:
    assert dense_of(store, named("0" * 64)) is None


def test_key_of_a_tier_is_refused(store: ArtifactStore) -> None:
    tier = commit_tier(store)
    with pytest.raises(InvalidArgument, match=f"got that of a tier: {tier.key}; it was made from"):
        dense_of(store, named(tier.key))
