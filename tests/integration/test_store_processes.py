import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from unit.artifacts.artifact_factory import commit_dense, commit_tier, digest

import serveprune
from serveprune.artifacts.store import ArtifactStore
from serveprune.errors import ResourceExhausted

ROOT = Path(serveprune.__file__).parents[1]
PLENTY = 2**30
GRAPH = b"graph" * 1000


class StoreProcess:
    """A running `integration.store_process`."""

    def __init__(self, command: str, store: ArtifactStore, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "integration.store_process"),
                *(command, str(store.root), str(store.max_bytes), *map(str, arguments)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        )

    def __enter__(self) -> "StoreProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        return line.rstrip("\n")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.wait() == 0


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=PLENTY)


def _content(store: ArtifactStore, folder: str) -> list[str]:
    return sorted(path.name for path in (store.root / folder).glob("*"))


def test_single_flight_builds_once_when_processes_race(store: ArtifactStore, tmp_path: Path) -> None:
    log = tmp_path / "builds"
    with ExitStack() as stack:
        racers = [stack.enter_context(StoreProcess("build_once", store, log)) for _ in range(3)]
        for racer in racers:
            assert racer.line() == "ready"
        for racer in racers:
            racer.go_on()
        found = {racer.line() for racer in racers}
        for racer in racers:
            racer.end()
    begins, ends = log.read_text().splitlines()
    assert begins.split()[0] == ends.split()[0]
    assert len(found) == 1


def test_single_flight_goes_on_when_its_holder_is_killed(store: ArtifactStore) -> None:
    with StoreProcess("stage", store) as doomed:
        folder = Path(doomed.line())
        doomed.process.kill()
        doomed.process.wait()
    assert (folder / "model.onnx").exists()
    stored = commit_tier(store)
    assert store.open(stored.key) == stored
    assert not folder.exists()
    assert _content(store, "tmp") == []


def test_lease_of_another_process_keeps_an_artifact_until_it_ends(store: ArtifactStore) -> None:
    key = commit_tier(store).key
    tiny = ArtifactStore(store.root, max_bytes=0)
    with StoreProcess("lease", store, key) as holder:
        assert holder.line() == "leased"
        assert tiny.is_leased(key)
        tiny.collect_garbage()
        assert _content(store, "artifacts") == [key]
        holder.process.kill()
        holder.process.wait()
    assert not tiny.is_leased(key)
    assert tiny.collect_garbage() == [f"artifacts/{key}"]
    assert _content(store, "artifacts") == []


def test_staging_of_a_living_process_is_left_alone(store: ArtifactStore) -> None:
    with StoreProcess("stage", store) as writer:
        folder = Path(writer.line())
        commit_tier(store, "another")
        store.collect_garbage()
        assert (folder / "model.onnx").exists()
        writer.go_on()
        writer.end()
    assert store.find_tier(digest("tier")) is not None


def test_store_stays_sound_when_processes_store_and_evict_at_once(store: ArtifactStore) -> None:
    commit_tier(store, "tier 0", content=b"tier 0" * 500)
    small = ArtifactStore(store.root, max_bytes=int(store.size_bytes() * 2.5))
    with ExitStack() as stack:
        users = [stack.enter_context(StoreProcess("churn", small, 25)) for _ in range(3)]
        for user in users:
            assert user.line() == "done"
            user.end()
    assert _content(store, "quarantine") == []
    assert all(result.problem is None for result in small.verify())
    small.collect_garbage()
    assert small.size_bytes() <= small.max_bytes
    assert _content(store, "tmp") == []


# The first limit stops the graph, the second (a graph has 5000 bytes) the manifest.
@pytest.mark.parametrize(("max_file_bytes", "stopped"), [(100, True), (600, True), (5_500, False)])
def test_commit_tells_and_leaves_the_store_sound_when_a_file_cannot_grow(
    store: ArtifactStore, max_file_bytes: int, stopped: bool
) -> None:
    kept = commit_tier(store, "kept")
    with StoreProcess("small_files", store, max_file_bytes) as writer:
        told = writer.line()
        writer.end()
    assert told.startswith("RESOURCE_EXHAUSTED: storing an artifact: expected room for") == stopped, told
    assert _content(store, "tmp") == []
    assert store.open(kept.key) == kept
    assert len(_content(store, "artifacts")) == (1 if stopped else 2)
    assert all(result.problem is None for result in store.verify())


@pytest.fixture
def filling_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; only root may mount one, and not everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here; the test with a limit on file sizes covers this")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_commit_tells_and_leaves_the_store_sound_when_the_disk_fills_up(filling_disk: Path) -> None:
    store = ArtifactStore(filling_disk / "store", max_bytes=PLENTY)
    kept = commit_tier(store, "kept")
    with pytest.raises(ResourceExhausted, match=r"'No space left on device' with \d+ bytes free"):
        commit_tier(store, "large", content=bytes(400_000))
    assert _content(store, "tmp") == []
    # The last block goes to something else, and the store still hands out what it has.
    with pytest.raises(OSError, match="No space left"):
        (filling_disk / "ballast").write_bytes(bytes(400_000))
    with pytest.raises(ResourceExhausted):
        commit_tier(store, "small")
    with store.lease(kept.key):
        assert store.open(kept.key) == kept
    assert all(result.problem is None for result in store.verify())
    # Eviction makes room even then.
    assert ArtifactStore(store.root, max_bytes=0).collect_garbage() != []
    (filling_disk / "ballast").unlink()
    assert commit_tier(store, "small") in store.entries()


def test_open_and_lease_work_when_the_store_cannot_be_written() -> None:
    # A folder the unprivileged process may enter; pytest's own are private.
    with TemporaryDirectory() as name:
        store = ArtifactStore(Path(name) / "store", max_bytes=PLENTY)
        key = commit_tier(store).key
        corrupt = commit_tier(store, "corrupt")
        corrupt.graph.write_bytes(b"grapf")
        Path(name).chmod(0o755)
        for path in [store.root, *store.root.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with StoreProcess("unprivileged", store, key, corrupt.key) as reader:
            assert reader.line() == "opened leased"
            # What is corrupt is not served, though it cannot be set aside.
            assert reader.line() == "corrupt"
            reader.end()
        for path in [store.root, *store.root.rglob("*")]:
            path.chmod(0o755)
        assert corrupt.folder.exists()


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: SIGKILL loses nothing of either, and syncing a disk takes long."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def _crashes(store: ArtifactStore, action: str, *, prepare: Callable[[], None], check: Callable[[], None]) -> int:
    """Kill the action at each of its steps, each time from the same state; return how many steps it has."""
    prepare()
    steps = 0
    with StoreProcess("crash", store, action) as lab:
        while (ended := int(lab.line())) == -signal.SIGKILL:
            steps += 1
            check()
            shutil.rmtree(store.root)
            prepare()
            lab.go_on()
        assert ended == 0
        check()
        lab.go_on()
        lab.end()
    return steps


def test_commit_leaves_nothing_wrong_when_it_is_killed_at_any_step(quick_folder: Path) -> None:
    # Small enough that each commit also evicts.
    store = ArtifactStore(quick_folder / "store", max_bytes=12_000)

    def prepare() -> None:
        commit_tier(store, "older", content=b"older" * 1000)

    def check() -> None:
        assert all(result.problem is None for result in store.verify())
        found = store.find_tier(digest("tier"))
        assert found is None or found.graph.read_bytes() == GRAPH
        stored = commit_tier(store, content=GRAPH)
        assert store.find_tier(digest("tier")) == stored
        assert stored.graph.read_bytes() == GRAPH
        assert _content(store, "tmp") == []
        assert _content(store, "quarantine") == []

    assert _crashes(store, "commit", prepare=prepare, check=check) > 20


def test_import_leaves_nothing_wrong_when_it_is_killed_at_any_step(quick_folder: Path) -> None:
    store = ArtifactStore(quick_folder / "store", max_bytes=PLENTY)

    def check() -> None:
        assert all(result.problem is None for result in store.verify())
        found = store.find_dense(digest("source"))
        assert found is None or found.graph.read_bytes() == GRAPH
        stored = commit_dense(store, content=GRAPH)
        assert store.find_dense(digest("source")) == stored
        assert _content(store, "tmp") == []

    assert _crashes(store, "import", prepare=lambda: store.root.mkdir(), check=check) > 30


def test_verify_leaves_nothing_wrong_when_it_is_killed_at_any_step(quick_folder: Path) -> None:
    store = ArtifactStore(quick_folder / "store", max_bytes=PLENTY)

    def prepare() -> None:
        commit_tier(store, content=GRAPH).graph.write_bytes(b"graph" * 999 + b"grapf")

    def check() -> None:
        assert store.find_tier(digest("tier")) is None
        assert len(_content(store, "quarantine")) == 1
        assert commit_tier(store, content=GRAPH).graph.read_bytes() == GRAPH

    assert _crashes(store, "verify", prepare=prepare, check=check) > 8


def test_collection_leaves_nothing_wrong_when_it_is_killed_at_any_step(quick_folder: Path) -> None:
    store = ArtifactStore(quick_folder / "store", max_bytes=8_000)
    roomy = ArtifactStore(store.root, max_bytes=PLENTY)

    def prepare() -> None:
        for name in ("old", "new"):
            commit_tier(roomy, name, content=GRAPH)
        (store.root / "tmp" / "dead").mkdir()
        (store.root / "tmp" / "dead" / "model.onnx").write_bytes(GRAPH)
        (store.root / "tmp" / "dead.lock").touch()

    def check() -> None:
        assert all(result.problem is None for result in store.verify())
        new = store.find_tier(digest("new"))
        assert new is not None
        store.collect_garbage()
        assert [one.key for one in store.entries()] == [new.key]
        assert _content(store, "tmp") == []

    assert _crashes(store, "collect", prepare=prepare, check=check) > 15
