from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from unit.artifacts.clock import Clock
from unit.artifacts.shared_side import Machine

from serveprune.artifacts.opening import open_store
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import ArtifactStore, StoreEvent
from serveprune.config.server import StoreConfig


@pytest.fixture
def events() -> list[StoreEvent]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, events: list[StoreEvent], clock: Clock) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=2**30, on_event=events.append, clock=clock)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    place = f"{request.param}://{tmp_path}/shared"
    yield place
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        if memory.exists(f"{tmp_path}"):
            memory.rm(f"{tmp_path}", recursive=True)


@pytest.fixture
def seen() -> dict[str, list[StoreEvent]]:
    return {}


@pytest.fixture
def machine(url: str, tmp_path: Path, seen: dict[str, list[StoreEvent]]) -> Machine:
    def make(name: str) -> SharedArtifactStore:
        config = StoreConfig(path=url, cache_path=tmp_path / name)
        store = open_store(config, on_event=seen.setdefault(name, []).append)
        assert isinstance(store, SharedArtifactStore)
        return store

    return make
