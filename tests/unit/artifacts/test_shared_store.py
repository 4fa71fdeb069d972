"""Two machines are two folders over one fsspec memory file system; each test has a prefix of its own."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from unit.artifacts.artifact_factory import commit_dense, commit_tier, digest
from unit.artifacts.shared_side import Machine, damage, objects

from serveprune.artifacts.object_storage import ObjectStorage
from serveprune.artifacts.remote import RemoteArtifacts
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.errors import DataLoss, FailedPrecondition, MissingExtra, Unavailable


def test_what_one_machine_published_is_served_by_another(machine: Machine, seen: dict[str, list[StoreEvent]]) -> None:
    first, second = machine("first"), machine("second")
    tier = commit_tier(first)
    assert second.find_tier(digest("tier")) is None
    assert first.publish()

    found = second.find_tier(digest("tier"))
    assert found is not None
    assert found.folder.is_relative_to(second.root)
    assert found.graph.read_bytes() == tier.graph.read_bytes()
    assert seen["first"].count(StoreEvent.PUBLISHED) == 1
    assert seen["second"].count(StoreEvent.FETCHED) == 1
    assert second.find_tier(digest("tier")) == found
    assert seen["second"].count(StoreEvent.FETCHED) == 1
    assert not second.has_unpublished()


def test_dense_is_found_by_the_import_record_of_another_machine(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    dense = commit_dense(first)
    assert first.publish()
    found = second.find_dense(digest("source"))
    assert found is not None
    assert found.key == dense.key


def test_any_environment_finds_what_another_one_built(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    other = commit_tier(first, built_in={"cpu": "another"})
    assert first.publish()
    assert second.find_tier(digest("tier")) is None
    found = second.find_tier(digest("tier"), any_environment=True)
    assert found is not None
    assert found.key == other.key


def test_artifact_without_its_manifest_is_visible_to_nobody(machine: Machine, url: str) -> None:
    first, second = machine("first"), machine("second")
    tier = commit_tier(first)
    first.publish()
    first.remote.withdraw(tier.key)  # as if its publisher had died just before
    assert second.open(tier.key) is None
    assert any("/files/" in name for name in objects(url)[1])


@pytest.mark.parametrize("part", ["/files/", "/manifest"])
def test_corrupt_artifact_is_not_served_but_counted_and_published_anew(
    machine: Machine, url: str, seen: dict[str, list[StoreEvent]], part: str
) -> None:
    first, second, third = machine("first"), machine("second"), machine("third")
    tier = commit_tier(first)
    first.publish()
    damage(url, part, b"x" * 100)

    assert second.open(tier.key) is None
    assert StoreEvent.SHARED_CORRUPT in seen["second"]
    assert not list((second.root / "artifacts").glob("*"))
    commit_tier(second)
    assert second.publish()
    found = third.open(tier.key)
    assert found is not None
    assert found.graph.read_bytes() == tier.graph.read_bytes()


def test_second_publisher_of_a_key_changes_nothing(machine: Machine, seen: dict[str, list[StoreEvent]]) -> None:
    first, second, third = machine("first"), machine("second"), machine("third")
    # Same recipe and environment, other bytes: builds need not repeat to the bit.
    tier = commit_tier(first, content=b"of the first")
    second_tier = commit_tier(second, content=b"of the second")
    assert tier.key == second_tier.key
    assert first.publish()
    # Past the look whether it is there, as one that lost its lease in the middle of publishing.
    assert not second.remote.publish(second_tier.folder, second_tier.manifest)
    found = third.open(tier.key)
    assert found is not None
    assert found.graph.read_bytes() == b"of the first"


class _Away(ObjectStorage):
    away = False

    def _open(self) -> tuple[Any, str]:
        if self.away:
            raise ConnectionError("no route to host")
        return super()._open()


def test_while_the_shared_side_is_away_copies_serve_and_what_is_built_is_published_later(
    url: str, tmp_path: Path
) -> None:
    events: list[StoreEvent] = []
    storage = _Away(url, options={}, timeout_seconds=1)
    store = SharedArtifactStore(tmp_path / "here", RemoteArtifacts(storage), max_bytes=2**30, on_event=events.append)
    storage.away = True
    tier = commit_tier(store)
    assert store.open(tier.key) is not None
    assert StoreEvent.UNREACHABLE not in events  # what is here asks nobody
    assert store.open(digest("unknown")) is None
    assert StoreEvent.UNREACHABLE in events
    assert not store.publish()
    assert StoreEvent.PUBLISH_FAILED in events
    with pytest.raises(Unavailable, match="no route to host"):
        storage.read("anything")

    storage.away = False
    # Also by another process, which knows of it by the folder alone.
    again = SharedArtifactStore(tmp_path / "here", RemoteArtifacts(storage), max_bytes=2**30)
    assert again.has_unpublished()
    assert again.publish()
    assert again.remote.manifest(tier.key) is not None


def test_what_was_built_before_the_store_was_shared_can_be_published(machine: Machine, tmp_path: Path) -> None:
    before = ArtifactStore(tmp_path / "first", max_bytes=2**30)
    dense, tier = commit_dense(before), commit_tier(before)
    first, second = machine("first"), machine("second")
    assert not first.has_unpublished()
    first.note_all_unpublished()
    assert first.publish()
    assert second.open(tier.key) is not None
    found = second.find_dense(digest("source"))
    assert found is not None
    assert found.key == dense.key


def test_manifest_that_names_a_file_outside_is_refused(machine: Machine, tmp_path: Path) -> None:
    first = machine("first")
    tier = commit_tier(first)
    record = next(iter(tier.manifest.files.values()))
    evil = tier.manifest.model_copy(update={"files": {"../../evil": record}})
    (tmp_path / "target").mkdir()
    with pytest.raises(DataLoss, match="outside the artifact"):
        first.remote.fetch(evil, tmp_path / "target")


def test_missing_package_names_the_extra() -> None:
    if importlib.util.find_spec("s3fs") is not None:
        pytest.skip("s3fs is installed here")
    storage = ObjectStorage("s3://bucket/prefix", options={}, timeout_seconds=1)
    with pytest.raises(MissingExtra, match=r'pip install "serveprune\[s3\]"'):
        storage.read("anything")


def test_unknown_file_system_is_said_to_be_one() -> None:
    storage = ObjectStorage("nonsense://bucket", options={}, timeout_seconds=1)
    with pytest.raises(FailedPrecondition, match="nonsense"):
        storage.read("anything")
