"""What the store keeps, and what goes: leases, eviction, verification, garbage."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.artifacts.artifact_factory import (
    commit_dense,
    commit_tier,
    digest,
    tier_manifest,
    write_graph,
)
from unit.artifacts.clock import Clock
from unit.artifacts.damage import flip_bit
from unit.artifacts.store_folder import import_record, quarantine

from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import artifact_key
from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.errors import NotFound


def _bounded(store: ArtifactStore, events: list[StoreEvent], clock: Clock, *, artifacts: float) -> ArtifactStore:
    """The same store, with room for so many artifacts as it holds one of."""
    one_bytes = store.size_bytes() / len(store.entries())
    return ArtifactStore(store.root, max_bytes=int(one_bytes * artifacts), on_event=events.append, clock=clock)


def _names(store: ArtifactStore, *names: str) -> set[str]:
    keys = {artifact_key(digest(name), environment()): name for name in names}
    return {keys[one.key] for one in store.entries()}


def test_commit_evicts_the_least_recently_used_when_the_store_is_full(
    store: ArtifactStore, events: list[StoreEvent], clock: Clock
) -> None:
    kept = {name: commit_tier(store, name) for name in "abc"}
    store.open(kept["a"].key)
    full = _bounded(store, events, clock, artifacts=3.5)
    events.clear()
    commit_tier(full, "d")
    assert _names(full, *"abcd") == {"a", "c", "d"}
    assert events == [StoreEvent.STORED, StoreEvent.EVICTED]
    assert full.size_bytes() <= full.max_bytes
    assert full.open(kept["b"].key) is None


def test_commit_keeps_what_it_just_stored_when_that_alone_is_too_large(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    commit_tier(store, "a")
    tiny = ArtifactStore(store.root, max_bytes=10)
    commit_tier(tiny, "b")
    assert _names(tiny, "a", "b") == {"b"}
    assert "in use or just stored" in caplog.text


def test_commit_never_evicts_what_is_leased(store: ArtifactStore, events: list[StoreEvent], clock: Clock) -> None:
    oldest = commit_tier(store, "a")
    commit_tier(store, "b")
    full = _bounded(store, events, clock, artifacts=2.5)
    with store.lease(oldest.key), store.lease(oldest.key):
        assert full.is_leased(oldest.key)
        commit_tier(full, "c")
        assert _names(full, *"abc") == {"a", "c"}
    assert not full.is_leased(oldest.key)
    commit_tier(full, "d")
    assert _names(full, *"abcd") == {"c", "d"}


@settings(max_examples=25)
@given(
    used=st.lists(st.sampled_from("abcde"), max_size=8),
    room=st.integers(1, 5),
    leased=st.sets(st.sampled_from("abcde")),
)
def test_collect_garbage_keeps_the_most_recently_used_and_all_leased(
    tmp_path_factory: pytest.TempPathFactory, used: list[str], room: int, leased: set[str]
) -> None:
    clock = Clock()
    store = ArtifactStore(tmp_path_factory.mktemp("lru"), max_bytes=2**30, clock=clock)
    keys = {name: commit_tier(store, name).key for name in "abcde"}
    for name in used:
        store.open(keys[name])
    full = _bounded(store, [], clock, artifacts=room + 0.5)
    leases = [store.lease(keys[name]) for name in leased]
    full.collect_garbage()
    for lease in leases:
        lease.release()

    oldest_first = list(dict.fromkeys(reversed([*"abcde", *used])))[::-1]
    evicted = [name for name in oldest_first if name not in leased][: 5 - room]
    assert _names(full, *"abcde") == set("abcde") - set(evicted)


def test_quarantine_goes_before_artifacts_when_the_store_is_full(
    store: ArtifactStore, events: list[StoreEvent], clock: Clock
) -> None:
    commit_tier(store, "a")
    commit_tier(store, "b")
    full = _bounded(store, events, clock, artifacts=2.5)
    corrupt = commit_tier(store, "c")
    flip_bit(corrupt.graph)
    store.open(corrupt.key)
    events.clear()
    [removed] = [path for path in full.collect_garbage() if not path.startswith("locks/")]
    assert removed.startswith(f"quarantine/{corrupt.key}")
    assert _names(full, "a", "b") == {"a", "b"}
    assert events == []


def test_what_passes_share_counts_and_goes_with_artifacts_of_its_age(
    store: ArtifactStore, events: list[StoreEvent], clock: Clock
) -> None:
    commit_tier(store, "a")
    artifact_bytes = store.size_bytes()
    for name, age_days in (("old.npz", 2), ("new.npz", -1)):
        path = store.pass_cache / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(artifact_bytes))
        _age(path, clock, days=age_days)
    commit_tier(store, "b")
    assert store.size_bytes() == pytest.approx(4 * artifact_bytes, rel=0.01)
    full = ArtifactStore(store.root, max_bytes=int(3.1 * artifact_bytes), on_event=events.append, clock=clock)
    assert full.collect_garbage() == ["pass-cache/old.npz"]
    assert _names(full, "a", "b") == {"a", "b"}
    fuller = ArtifactStore(store.root, max_bytes=int(1.1 * artifact_bytes), on_event=events.append, clock=clock)
    assert len(fuller.collect_garbage()) == 2
    assert [path.name for path in store.pass_cache.iterdir()] == ["new.npz"]


def test_lease_raises_when_there_is_no_such_artifact(store: ArtifactStore) -> None:
    with pytest.raises(NotFound, match="has to be built again"):
        store.lease(digest("nothing"))
    assert not store.is_leased(digest("nothing"))


def test_lease_may_be_released_twice(store: ArtifactStore) -> None:
    key = commit_tier(store).key
    first, second = store.lease(key), store.lease(key)
    first.release()
    first.release()
    assert store.is_leased(key)
    second.release()
    assert not store.is_leased(key)


def test_entries_leave_out_corrupt_manifests_and_digest_nothing(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    sound, tampered, broken = (commit_tier(store, name) for name in "abc")
    flip_bit(tampered.graph)
    (broken.folder / "manifest.json").write_text("{")
    assert {one.key for one in store.entries()} == {sound.key, tampered.key}
    assert broken.key in caplog.text


def test_verify_sets_aside_all_that_is_corrupt(store: ArtifactStore, events: list[StoreEvent]) -> None:
    sound, tampered = commit_tier(store, "a"), commit_tier(store, "b")
    commit_dense(store)
    record = import_record(store)
    flip_bit(tampered.graph)
    flip_bit(record)
    (store.root / "artifacts" / "notes.txt").write_text("left by hand")
    events.clear()
    problems = {result.path: result.problem for result in store.verify()}
    assert {path for path, problem in problems.items() if problem is not None} == {
        f"artifacts/{tampered.key}",
        "artifacts/notes.txt",
        f"imports/{record.parent.name}/{record.name}",
    }
    assert problems[f"artifacts/{sound.key}"] is None
    assert events == [StoreEvent.CORRUPT] * 3
    assert all(result.problem is None for result in store.verify())


def test_verify_does_not_count_as_use(store: ArtifactStore, events: list[StoreEvent], clock: Clock) -> None:
    first, _ = commit_tier(store, "a"), commit_tier(store, "b")
    store.verify()
    full = _bounded(store, events, clock, artifacts=1.5)
    full.collect_garbage()
    assert store.open(first.key) is None
    assert _names(full, "a", "b") == {"b"}


def _age(path: Path, clock: Clock, *, days: float) -> None:
    seconds = clock() - days * 86_400
    os.utime(path, (seconds, seconds))


def test_collect_garbage_removes_old_quarantine_and_failures(store: ArtifactStore, clock: Clock) -> None:
    for name in ("old", "new"):
        corrupt = commit_tier(store, name)
        flip_bit(corrupt.graph)
        store.open(corrupt.key)
        store.failure_log(f"boots@{name}").write_text("Traceback")
    old, _ = sorted((store.root / "quarantine").iterdir(), key=lambda path: (path / "reason.txt").stat().st_mtime)
    _age(old / "reason.txt", clock, days=8)
    _age(store.failure_log("boots@old"), clock, days=31)
    _age(store.failure_log("boots@new"), clock, days=8)
    removed = store.collect_garbage()
    assert removed == [f"quarantine/{old.name}", "failures/boots@old"]
    assert len(list(quarantine(store))) == 1
    assert store.failure_log("boots@new").read_text() == "Traceback"


def test_collect_garbage_removes_what_passes_shared_long_ago(store: ArtifactStore, clock: Clock) -> None:
    store.pass_cache.mkdir(parents=True)
    for name, days in (("a.json", 31), (".b.1.partial", 31), ("c.json", 8)):
        (store.pass_cache / name).write_text("{}")
        _age(store.pass_cache / name, clock, days=days)
    assert set(store.collect_garbage()) == {"pass-cache/a.json", "pass-cache/.b.1.partial"}
    assert [path.name for path in store.pass_cache.iterdir()] == ["c.json"]


def test_collect_garbage_removes_import_records_when_their_artifact_is_gone(store: ArtifactStore) -> None:
    commit_dense(store, "kept", content=b"kept")
    gone = commit_dense(store, "gone", content=b"gone")
    shutil.rmtree(gone.folder)
    record = import_record(store, "gone")
    assert store.collect_garbage() == [str(record.relative_to(store.root))]
    assert store.find_dense(digest("kept")) is not None


def test_collect_garbage_sets_aside_what_is_half_written(store: ArtifactStore, events: list[StoreEvent]) -> None:
    folder = commit_tier(store).folder
    (folder / "manifest.json").unlink()
    events.clear()
    assert store.collect_garbage() == []
    assert events == [StoreEvent.CORRUPT]
    assert not folder.exists()


def test_collect_garbage_leaves_what_is_being_written(store: ArtifactStore) -> None:
    with store.staging() as folder:
        files = write_graph(folder, b"graph")
        assert store.collect_garbage() == []
        stored = store.commit(folder, tier_manifest(files))
    assert store.open(stored.key) == stored


def test_collect_garbage_works_when_the_store_is_not_there(store: ArtifactStore) -> None:
    assert store.collect_garbage() == []
    assert store.verify() == []
    assert store.entries() == []
    assert store.size_bytes() == 0
