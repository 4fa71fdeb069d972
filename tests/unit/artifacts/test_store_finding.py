"""What a recipe finds in the store."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.artifacts.artifact_factory import (
    commit_dense,
    commit_tier,
    digest,
)
from unit.artifacts.damage import flip_bit, replace_by_folder
from unit.artifacts.store_folder import import_record, quarantine

from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.config.model import ImagePreprocessing

ELSEWHERE = {"torch": "1.0", "cpu": "another"}


def test_find_tier_finds_what_was_built_here_only(store: ArtifactStore, events: list[StoreEvent]) -> None:
    elsewhere = commit_tier(store, built_in=ELSEWHERE)
    assert store.find_tier(digest("tier")) is None
    here = commit_tier(store)
    assert store.find_tier(digest("tier")) == here
    assert elsewhere.key != here.key
    assert events == [StoreEvent.STORED, StoreEvent.MISS, StoreEvent.STORED, StoreEvent.HIT]


def test_find_tier_takes_the_newest_sound_one_when_any_environment_will_do(
    store: ArtifactStore, events: list[StoreEvent]
) -> None:
    years = {
        year: commit_tier(store, built_in={"cpu": year}, created=f"{year}-01-01") for year in ("2024", "2026", "2025")
    }
    commit_tier(store, "another recipe", built_in=ELSEWHERE, created="2027-01-01")
    events.clear()
    assert store.find_tier(digest("tier"), any_environment=True) == years["2026"]
    assert events == [StoreEvent.HIT]
    flip_bit(years["2026"].graph)
    assert store.find_tier(digest("tier"), any_environment=True) == years["2025"]
    assert events[1:] == [StoreEvent.CORRUPT, StoreEvent.HIT]
    here = commit_tier(store, created="2020-01-01")
    assert store.find_tier(digest("tier"), any_environment=True) == here


def test_find_dense_follows_the_import_record(store: ArtifactStore, events: list[StoreEvent]) -> None:
    assert store.find_dense(digest("source")) is None
    stored = commit_dense(store)
    assert store.find_dense(digest("source")) == stored
    assert store.find_dense(digest("another source")) is None
    assert events == [StoreEvent.MISS, StoreEvent.STORED, StoreEvent.HIT, StoreEvent.MISS]


def test_find_dense_shares_one_artifact_when_sources_give_the_same_graph(store: ArtifactStore) -> None:
    assert commit_dense(store, "one") == commit_dense(store, "other")
    assert store.find_dense(digest("one")) == store.find_dense(digest("other"))


def test_find_dense_keeps_sources_apart_when_they_declare_different_preprocessing(store: ArtifactStore) -> None:
    small, large = (ImagePreprocessing(size=size) for size in (28, 224))
    commit_dense(store, "small", preprocessing=small)
    commit_dense(store, "large", preprocessing=large)
    found = [store.find_dense(digest(name)) for name in ("small", "large")]
    assert [one and one.manifest.preprocessing for one in found] == [small, large]


def test_find_dense_misses_when_the_artifact_is_gone_or_corrupt(store: ArtifactStore, events: list[StoreEvent]) -> None:
    stored = commit_dense(store)
    flip_bit(stored.graph)
    events.clear()
    assert store.find_dense(digest("source")) is None
    assert store.find_dense(digest("source")) is None
    assert events == [StoreEvent.CORRUPT, StoreEvent.MISS, StoreEvent.MISS]
    assert commit_dense(store) == stored
    assert store.find_dense(digest("source")) == stored


def test_find_dense_misses_when_the_record_points_to_a_tier(store: ArtifactStore) -> None:
    store.record_import(digest("source"), commit_tier(store).key)
    assert store.find_dense(digest("source")) is None


@pytest.mark.parametrize(
    "damage",
    [
        flip_bit,
        lambda path: os.truncate(path, 20),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_text(path.read_text().replace(digest("source"), digest("stolen"))),
        replace_by_folder,
    ],
)
def test_find_dense_sets_aside_the_import_record_when_it_is_corrupt(
    store: ArtifactStore, events: list[StoreEvent], damage: Callable[[Path], object]
) -> None:
    stored = commit_dense(store)
    record = import_record(store)
    damage(record)
    events.clear()
    assert store.find_dense(digest("source")) is None
    assert events == [StoreEvent.CORRUPT, StoreEvent.MISS]
    [(name, reason)] = quarantine(store)
    assert name.startswith(record.name)
    assert reason.startswith(f"imports/{digest('source')}/{record.name}: ")
    assert store.open(stored.key) == stored


def test_find_dense_misses_when_a_record_was_copied_to_another_recipe(store: ArtifactStore) -> None:
    commit_dense(store)
    record = import_record(store)
    target = store.root / "imports" / digest("other") / record.name
    target.parent.mkdir()
    shutil.copy(record, target)
    assert store.find_dense(digest("other")) is None


def test_find_dense_takes_an_import_made_elsewhere_when_told_to(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, cpu in enumerate(("old", "new")):
        monkeypatch.setattr("serveprune.artifacts.store.environment", lambda cpu=cpu: {"cpu": cpu})
        commit_dense(store, content=b"graph %d" % number)
    monkeypatch.undo()
    assert store.find_dense(digest("source")) is None
    found = store.find_dense(digest("source"), any_environment=True)
    assert found is not None
    assert found.graph.read_bytes() == b"graph 1"
    here = commit_dense(store, content=b"graph here")
    assert store.find_dense(digest("source"), any_environment=True) == here
