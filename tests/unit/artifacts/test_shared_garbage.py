"""What may go from the shared side, and what must stay, whoever asks for it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from unit.artifacts.artifact_factory import commit_dense, commit_tier
from unit.artifacts.shared_side import Machine, damage, objects

from serveprune.artifacts.key import source_recipe, tier_recipe
from serveprune.artifacts.shared_flight import SharedFlight
from serveprune.artifacts.shared_garbage import Asked, SharedGarbage
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import Artifact
from serveprune.config.model import ArtifactSource, ModelConfig, OnnxSource
from serveprune.config.profile import PassConfig, ProfileConfig, QuantizeOptions
from serveprune.errors import NotFound

NOW = datetime.now(UTC)
LONG_AGO, SOON = NOW - timedelta(days=1), NOW + timedelta(days=1)
INT8 = ProfileConfig(passes=(PassConfig(quantize=QuantizeOptions()),))
DYNAMIC = ProfileConfig(passes=(PassConfig(quantize=QuantizeOptions(scheme="dynamic")),))


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    (tmp_path / "boots.onnx").write_bytes(b"boots")
    return ModelConfig(source=OnnxSource(onnx=tmp_path / "boots.onnx"))


def publish_dense(store: SharedArtifactStore, model: ModelConfig, *, content: bytes = b"dense graph") -> Artifact:
    dense = commit_dense(store, content=content)
    store.record_import(source_recipe(model), dense.key)
    assert store.publish()
    return dense


def publish_tier(
    store: SharedArtifactStore, model: ModelConfig, dense: Artifact, *, profile: ProfileConfig = INT8, **changes: Any
) -> Artifact:
    recipe = tier_recipe(dense.key, model, profile, threads=1)
    tier = commit_tier(store, recipe=recipe, dense_key=dense.key, **changes)
    assert store.publish()
    return tier


def artifacts(store: SharedArtifactStore, *asked: Asked, unasked_before: datetime = SOON) -> list[str]:
    found = SharedGarbage(store.remote, unasked_before=unasked_before, dead_before=LONG_AGO).find(asked)
    assert all(one.kind == "artifact" for one in found)
    return [one.name for one in found]


def test_what_a_config_asks_for_stays_in_whatever_environment_it_was_made(machine: Machine, model: ModelConfig) -> None:
    store = machine("one")
    dense = publish_dense(store, model)
    publish_tier(store, model, dense)
    publish_tier(store, model, dense, built_in={"cpu": "another"})
    assert artifacts(store, Asked(model, (INT8,), threads=1)) == []


def test_tier_of_another_profile_another_model_or_other_threads_may_go(
    machine: Machine, model: ModelConfig, tmp_path: Path
) -> None:
    store = machine("one")
    dense = publish_dense(store, model)
    tier = publish_tier(store, model, dense)
    (tmp_path / "shoes.onnx").write_bytes(b"shoes")
    other = ModelConfig(source=OnnxSource(onnx=tmp_path / "shoes.onnx"))
    assert artifacts(store, Asked(model, (DYNAMIC,), threads=1)) == [tier.key]
    assert artifacts(store, Asked(model, (INT8,), threads=2)) == [tier.key]
    assert artifacts(store, Asked(model, (), threads=1)) == [tier.key]
    assert artifacts(store, Asked(other, (INT8,), threads=1)) == sorted([tier.key, dense.key])


def test_configs_that_share_a_store_are_asked_together(machine: Machine, model: ModelConfig) -> None:
    store = machine("one")
    dense = publish_dense(store, model)
    publish_tier(store, model, dense)
    publish_tier(store, model, dense, profile=DYNAMIC)
    assert artifacts(store, Asked(model, (INT8,), threads=1), Asked(model, (DYNAMIC,), threads=1)) == []


def test_model_that_names_an_artifact_keeps_it_and_its_tiers(machine: Machine, model: ModelConfig) -> None:
    store = machine("one")
    dense = publish_dense(store, model)
    by_key = ModelConfig(source=ArtifactSource(artifact=dense.key))
    publish_tier(store, by_key, dense)
    assert artifacts(store, Asked(by_key, (INT8,), threads=1)) == []


def test_what_was_published_lately_stays_and_so_does_what_it_was_made_from(
    machine: Machine, model: ModelConfig
) -> None:
    store = machine("one")
    dense = publish_dense(store, model)
    between = datetime.now(UTC)
    tier = publish_tier(store, model, dense)
    other = publish_dense(store, model, content=b"another graph")
    assert artifacts(store, unasked_before=LONG_AGO) == []
    # Of what is old, the graph that the young tier was made from.
    assert dense.key not in artifacts(store, unasked_before=between)
    assert artifacts(store) == sorted([dense.key, tier.key, other.key])


def test_source_that_cannot_be_read_is_an_error_and_not_taken_to_be_unasked(
    machine: Machine, model: ModelConfig
) -> None:
    store = machine("one")
    publish_dense(store, model)
    gone = ModelConfig(source=OnnxSource.model_construct(onnx=Path("/nowhere/boots.onnx")))
    with pytest.raises(NotFound, match="boots"):
        artifacts(store, Asked(gone, (), threads=1))


def test_all_of_what_may_go_goes_and_what_stays_is_whole(machine: Machine, model: ModelConfig, url: str) -> None:
    store = machine("one")
    dense = publish_dense(store, model)
    tier = publish_tier(store, model, dense)
    publish_tier(store, model, dense, profile=DYNAMIC)
    garbage = SharedGarbage(store.remote, unasked_before=SOON, dead_before=SOON)
    for one in garbage.find([Asked(model, (INT8,), threads=1)]):
        garbage.remove(one)
    second = machine("second")
    published = [key for key in store.remote.all_keys() if store.remote.manifest(key) is not None]
    assert published == sorted([dense.key, tier.key])
    assert second.find_tier(tier.manifest.recipe) is not None
    assert second.find_dense(source_recipe(model)) is not None
    for one in garbage.find([]):
        garbage.remove(one)
    assert objects(url)[1] == []


def test_what_dead_publishers_and_builders_left_goes_when_it_is_old(
    machine: Machine, model: ModelConfig, url: str
) -> None:
    store = machine("one")
    tier = publish_tier(store, model, publish_dense(store, model))
    store.remote.withdraw(tier.key)
    flight = SharedFlight(store.remote.storage, "build", lease_seconds=60, on_lost=lambda: None)
    lease = flight.try_take()
    assert lease is not None
    lease.release()
    asked = [Asked(model, (INT8,), threads=1)]
    young = SharedGarbage(store.remote, unasked_before=SOON, dead_before=LONG_AGO)
    assert young.find(asked) == []
    old = SharedGarbage(store.remote, unasked_before=LONG_AGO, dead_before=SOON)
    found = old.find(asked)
    assert sorted(one.kind for one in found) == ["lease", "leftover", "record"]
    for one in found:
        old.remove(one)
    assert not [name for name in objects(url)[1] if tier.key in name or "flights" in name]


def test_corrupt_manifest_is_a_leftover(machine: Machine, model: ModelConfig, url: str) -> None:
    store = machine("one")
    dense = publish_dense(store, model)
    damage(url, f"{dense.key}/manifest", b"damaged")
    found = SharedGarbage(store.remote, unasked_before=SOON, dead_before=SOON).find([])
    assert [one.name for one in found if one.kind == "leftover"] == [dense.key]


def test_damaged_import_record_is_of_nothing_that_is_there(machine: Machine, model: ModelConfig, url: str) -> None:
    store = machine("one")
    publish_dense(store, model)
    damage(url, "imports/", b"damaged")
    found = SharedGarbage(store.remote, unasked_before=LONG_AGO, dead_before=SOON).find([])
    assert {one.kind for one in found} == {"record"}
