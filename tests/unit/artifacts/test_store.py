import errno
import hashlib
import json
import logging
import math
import os
import subprocess
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
from unit.artifacts.damage import DAMAGES
from unit.artifacts.store_folder import files_below, quarantine

from serveprune.artifacts.environment import environment
from serveprune.artifacts.key import artifact_key
from serveprune.artifacts.manifest import PassRecord
from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.config.model import ImagePreprocessing
from serveprune.errors import BuildFailed, Internal, InvalidArgument, ResourceExhausted

NO_BYTES = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}


def test_open_returns_what_was_committed(store: ArtifactStore, events: list[StoreEvent]) -> None:
    stored = commit_tier(store)
    found = store.open(stored.key)
    assert found == stored
    assert found.graph.read_bytes() == b"graph"
    assert found.folder == store.root / "artifacts" / stored.key
    assert events == [StoreEvent.STORED, StoreEvent.HIT]
    assert files_below(store.root / "tmp") == []


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
    assert files_below(store.root / "tmp") == []


def test_commit_replaces_the_artifact_that_is_there_when_it_is_corrupt(store: ArtifactStore) -> None:
    first = commit_tier(store)
    first.graph.write_bytes(b"grapf")
    commit_tier(store)
    assert first.graph.read_bytes() == b"graph"
    assert len(list(quarantine(store))) == 1


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
    assert files_below(store.root / "tmp") == []
    assert list((store.root / "tmp").iterdir()) == []


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
    [(name, reason)] = quarantine(store)
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
    assert len(list(quarantine(store))) == 1


@settings(max_examples=60)
@given(data=st.data())
def test_open_serves_no_byte_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = ArtifactStore(tmp_path_factory.getbasetemp() / "fuzzed", max_bytes=2**30)
    stored = commit_tier(store, content=b"some graph")
    path = stored.folder / data.draw(st.sampled_from(files_below(stored.folder)))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content)))
    changed = content[:place] + data.draw(st.binary(max_size=3)) + content[place + data.draw(st.integers(0, 3)) :]
    path.write_bytes(changed)
    assert (store.open(stored.key) is None) == (changed != content)


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
    assert files_below(store.root / "tmp") == []
    assert commit_tier(store) == store.entries()[0]


def test_dense_manifest_key_is_checked_with_its_preprocessing(store: ArtifactStore) -> None:
    with store.staging() as folder:
        files = write_graph(folder, b"graph")
        plain = dense_manifest(files, recipe=digest("source"))
        wrong = plain.model_copy(update={"preprocessing": ImagePreprocessing(size=28)})
        with pytest.raises(Internal, match="expected the dense artifact's key"):
            store.commit(folder, wrong)
