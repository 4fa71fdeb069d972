import errno
import hashlib
import json
import logging
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.artifacts.artifact_factory import (
    MEASUREMENTS,
    commit_dense,
    commit_tier,
    dense_manifest,
    digest,
    tier_manifest,
    write_graph,
)

from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import artifact_key
from serveprune.artifacts.manifest import PassRecord
from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.config.model import ImagePreprocessing
from serveprune.errors import BuildFailed, Internal, InvalidArgument, NotFound, ResourceExhausted

NO_BYTES = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
ELSEWHERE = {"torch": "1.0", "cpu": "another"}


class Clock:
    """Goes on by a second whenever it is read."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


@pytest.fixture
def events() -> list[StoreEvent]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, events: list[StoreEvent], clock: Clock) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=2**30, on_event=events.append, clock=clock)


def _files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _quarantine(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    """Name and reason of each thing set aside."""
    for folder in sorted((store.root / "quarantine").glob("*")):
        yield folder.name, (folder / "reason.txt").read_text()


def test_open_returns_what_was_committed(store: ArtifactStore, events: list[StoreEvent]) -> None:
    stored = commit_tier(store)
    found = store.open(stored.key)
    assert found == stored
    assert found.graph.read_bytes() == b"graph"
    assert found.folder == store.root / "artifacts" / stored.key
    assert events == [StoreEvent.STORED, StoreEvent.HIT]
    assert _files_below(store.root / "tmp") == []


def test_open_returns_none_when_there_is_nothing(store: ArtifactStore, events: list[StoreEvent]) -> None:
    assert store.open(digest("nothing")) is None
    assert events == [StoreEvent.MISS]
    assert not store.root.exists()


def test_open_raises_when_the_key_leads_out_of_the_store(store: ArtifactStore) -> None:
    with pytest.raises(InvalidArgument):
        store.open("../../etc")


def test_commit_leaves_digests_that_sha256sum_accepts(store: ArtifactStore) -> None:
    folder = commit_tier(store).folder
    subprocess.run(["sha256sum", "--check", "--strict", "manifest.json.sha256"], cwd=folder, check=True)


def test_commit_syncs_every_file_and_folder_before_the_rename_and_the_manifest_last(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def told_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(str(path.relative_to(store.root)))
        fsync(descriptor)

    def told_rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "rename", told_rename)
    with store.staging() as folder:
        files = write_graph(folder, b"graph")
        store.commit(folder, tier_manifest(files))

    staging = f"tmp/{folder.name}"
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    assert before[-2:] == [f"{staging}/manifest.json", staging]
    names = ("/model.onnx", "/assets/tokenizer.json", "/assets", "/manifest.json.sha256", "")
    assert {f"{staging}{name}" for name in names} <= set(before[:-2])
    assert after == ["artifacts", "."]


def test_commit_keeps_measurements_when_they_are_infinite(store: ArtifactStore) -> None:
    infinite = MEASUREMENTS.model_copy(update={"quality": {"cosine": 1.0, "sqnr_db": math.inf}})
    stored = commit_tier(store, measurements=infinite)
    found = store.open(stored.key)
    assert found is not None
    assert found.manifest.measurements == infinite
    json.loads((found.folder / "manifest.json").read_text(), parse_constant=pytest.fail)


def test_commit_returns_the_artifact_that_is_there_when_the_key_exists(store: ArtifactStore) -> None:
    first = commit_tier(store, created="2026-01-01T00:00:00+00:00")
    second = commit_tier(store, created="2026-02-02T00:00:00+00:00")
    assert second == first
    assert _files_below(store.root / "tmp") == []


def test_commit_replaces_the_artifact_that_is_there_when_it_is_corrupt(store: ArtifactStore) -> None:
    first = commit_tier(store)
    first.graph.write_bytes(b"grapf")
    commit_tier(store)
    assert first.graph.read_bytes() == b"graph"
    assert len(list(_quarantine(store))) == 1


@pytest.mark.parametrize("in_the_way", ["file", "empty folder", "half-written folder", "link"])
def test_commit_stores_when_something_else_is_in_the_way(store: ArtifactStore, in_the_way: str, tmp_path: Path) -> None:
    target = store.root / "artifacts" / artifact_key(digest("tier"), environment())
    target.parent.mkdir(parents=True)
    match in_the_way:
        case "file":
            target.write_bytes(b"")
        case "link":
            target.symlink_to(tmp_path)
        case _:
            target.mkdir()
            if in_the_way == "half-written folder":
                (target / "model.onnx").write_bytes(b"graph")
    stored = commit_tier(store)
    assert store.open(stored.key) == stored


def test_commit_raises_when_the_manifest_does_not_fit(store: ArtifactStore) -> None:
    with store.staging() as folder:
        files = write_graph(folder, b"graph")
        with pytest.raises(Internal, match="expected the tier artifact's key to be"):
            store.commit(folder, tier_manifest(files, key=digest("made up")))
        with pytest.raises(Internal, match="the manifest records files"):
            store.commit(folder, tier_manifest({**files, "model.onnx.data": files["model.onnx"]}))
        (folder / "model.onnx").write_bytes(b"longer than recorded")
        with pytest.raises(Internal, match="the manifest records files"):
            store.commit(folder, tier_manifest(files))
    assert store.entries() == []


def test_commit_raises_when_there_is_no_graph(store: ArtifactStore) -> None:
    with store.staging() as folder, pytest.raises(Internal, match=r"expected a model\.onnx"):
        store.commit(folder, tier_manifest({}))


def test_commit_raises_when_the_manifest_would_not_survive(store: ArtifactStore) -> None:
    report = PassRecord(name="quantize", revision=1, options={}, report={"sum": np.float32(1)}, seconds=1.0)
    with pytest.raises(Internal, match="would not survive being written"):
        commit_tier(store, passes=(report,))
    assert store.entries() == []


def test_staging_leaves_nothing_when_the_block_fails(store: ArtifactStore) -> None:
    def build() -> None:
        with store.staging() as folder:
            write_graph(folder, b"graph")
            raise BuildFailed("the second pass failed")

    with pytest.raises(BuildFailed):
        build()
    assert _files_below(store.root / "tmp") == []
    assert list((store.root / "tmp").iterdir()) == []


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _swap_for_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def _replace_by_folder(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "graph tampered with": lambda folder: _flip_bit(folder / "model.onnx"),
    "graph truncated": lambda folder: os.truncate(folder / "model.onnx", 2),
    "graph empty": lambda folder: os.truncate(folder / "model.onnx", 0),
    "graph missing": lambda folder: (folder / "model.onnx").unlink(),
    "graph replaced by a link": lambda folder: _swap_for_link(folder / "model.onnx"),
    "asset tampered with": lambda folder: _flip_bit(folder / "assets" / "tokenizer.json"),
    "assets missing": lambda folder: shutil.rmtree(folder / "assets"),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: os.truncate(folder / "manifest.json", 0),
    "manifest truncated": lambda folder: os.truncate(folder / "manifest.json", 100),
    "manifest tampered with": lambda folder: _flip_bit(folder / "manifest.json"),
    "manifest a folder": lambda folder: _replace_by_folder(folder / "manifest.json"),
    "manifest digest missing": lambda folder: (folder / "manifest.json.sha256").unlink(),
    "everything missing": _replace_by_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_open_sets_aside_what_is_corrupt(
    store: ArtifactStore, events: list[StoreEvent], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    stored = commit_tier(store)
    events.clear()
    DAMAGES[damage](stored.folder)

    assert store.open(stored.key) is None

    assert events == [StoreEvent.CORRUPT, StoreEvent.MISS]
    assert not stored.folder.exists()
    [(name, reason)] = _quarantine(store)
    assert name.startswith(stored.key)
    assert reason.startswith(f"artifacts/{stored.key}: ")
    assert any(record.levelno == logging.ERROR and stored.key in record.message for record in caplog.records)
    # It is built again as if it had never been there.
    assert store.open(stored.key) is None
    assert events[2:] == [StoreEvent.MISS]
    assert commit_tier(store) == stored
    assert store.open(stored.key) == stored


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"key": "f" * 64},
        {"unheard_of": 1},
        {"files": {}},
        {"files": {"model.onnx": {"sha256": hashlib.sha256(b"graph").hexdigest(), "bytes": 5}, "../x": NO_BYTES}},
    ],
)
def test_open_sets_aside_a_manifest_of_another_kind_when_its_digest_fits(
    store: ArtifactStore, change: dict[str, object]
) -> None:
    folder = commit_tier(store).folder
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    (folder / "manifest.json.sha256").write_bytes(
        subprocess.run(["sha256sum", "manifest.json"], cwd=folder, check=True, capture_output=True).stdout
    )
    assert store.open(folder.name) is None
    assert len(list(_quarantine(store))) == 1


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_open_serves_no_byte_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = ArtifactStore(tmp_path_factory.getbasetemp() / "fuzzed", max_bytes=2**30)
    stored = commit_tier(store, content=b"some graph")
    path = stored.folder / data.draw(st.sampled_from(_files_below(stored.folder)))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content)))
    changed = content[:place] + data.draw(st.binary(max_size=3)) + content[place + data.draw(st.integers(0, 3)) :]
    path.write_bytes(changed)
    assert (store.open(stored.key) is None) == (changed != content)


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
    _flip_bit(years["2026"].graph)
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
    _flip_bit(stored.graph)
    events.clear()
    assert store.find_dense(digest("source")) is None
    assert store.find_dense(digest("source")) is None
    assert events == [StoreEvent.CORRUPT, StoreEvent.MISS, StoreEvent.MISS]
    assert commit_dense(store) == stored
    assert store.find_dense(digest("source")) == stored


def test_find_dense_misses_when_the_record_points_to_a_tier(store: ArtifactStore) -> None:
    store.record_import(digest("source"), commit_tier(store).key)
    assert store.find_dense(digest("source")) is None


def _import_record(store: ArtifactStore, name: str = "source") -> Path:
    [record] = (store.root / "imports" / digest(name)).glob("*.json")
    return record


@pytest.mark.parametrize(
    "damage",
    [
        _flip_bit,
        lambda path: os.truncate(path, 20),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_text(path.read_text().replace(digest("source"), digest("stolen"))),
        _replace_by_folder,
    ],
)
def test_find_dense_sets_aside_the_import_record_when_it_is_corrupt(
    store: ArtifactStore, events: list[StoreEvent], damage: Callable[[Path], object]
) -> None:
    stored = commit_dense(store)
    record = _import_record(store)
    damage(record)
    events.clear()
    assert store.find_dense(digest("source")) is None
    assert events == [StoreEvent.CORRUPT, StoreEvent.MISS]
    [(name, reason)] = _quarantine(store)
    assert name.startswith(record.name)
    assert reason.startswith(f"imports/{digest('source')}/{record.name}: ")
    assert store.open(stored.key) == stored


def test_find_dense_misses_when_a_record_was_copied_to_another_recipe(store: ArtifactStore) -> None:
    commit_dense(store)
    record = _import_record(store)
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


@settings(deadline=None, max_examples=25)
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
    _flip_bit(corrupt.graph)
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
    _flip_bit(tampered.graph)
    (broken.folder / "manifest.json").write_text("{")
    assert {one.key for one in store.entries()} == {sound.key, tampered.key}
    assert broken.key in caplog.text


def test_verify_sets_aside_all_that_is_corrupt(store: ArtifactStore, events: list[StoreEvent]) -> None:
    sound, tampered = commit_tier(store, "a"), commit_tier(store, "b")
    commit_dense(store)
    record = _import_record(store)
    _flip_bit(tampered.graph)
    _flip_bit(record)
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
        _flip_bit(corrupt.graph)
        store.open(corrupt.key)
        store.failure_log(f"boots@{name}").write_text("Traceback")
    old, _ = sorted((store.root / "quarantine").iterdir(), key=lambda path: (path / "reason.txt").stat().st_mtime)
    _age(old / "reason.txt", clock, days=8)
    _age(store.failure_log("boots@old"), clock, days=31)
    _age(store.failure_log("boots@new"), clock, days=8)
    removed = store.collect_garbage()
    assert removed == [f"quarantine/{old.name}", "failures/boots@old"]
    assert len(list(_quarantine(store))) == 1
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
    record = _import_record(store, "gone")
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


def test_store_works_when_its_folder_was_moved(store: ArtifactStore, tmp_path: Path) -> None:
    tier, dense = commit_tier(store), commit_dense(store)
    store.root.rename(tmp_path / "moved")
    moved = ArtifactStore(tmp_path / "moved", max_bytes=2**30)
    found = moved.find_tier(digest("tier"))
    assert found is not None
    assert found.key == tier.key
    found = moved.find_dense(digest("source"))
    assert found is not None
    assert found.key == dense.key


def test_commit_removes_its_staging_when_the_disk_is_full(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where exactly a disk fills up cannot be chosen; tests/integration fills one for real.
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("serveprune.artifacts.store.sync_tree", full)
    with pytest.raises(ResourceExhausted, match=r"expected room for more than \d+ bytes .* \d+ bytes free"):
        commit_tier(store)
    monkeypatch.undo()
    assert store.entries() == []
    assert _files_below(store.root / "tmp") == []
    assert commit_tier(store) == store.entries()[0]


def test_dense_manifest_key_is_checked_with_its_preprocessing(store: ArtifactStore) -> None:
    with store.staging() as folder:
        files = write_graph(folder, b"graph")
        plain = dense_manifest(files, recipe=digest("source"))
        wrong = plain.model_copy(update={"preprocessing": ImagePreprocessing(size=28)})
        with pytest.raises(Internal, match="expected the dense artifact's key"):
            store.commit(folder, wrong)
