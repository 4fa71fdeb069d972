from pathlib import Path

import pytest
from unit.artifacts.clock import Clock

from serveprune.artifacts.store import ArtifactStore, StoreEvent


@pytest.fixture
def events() -> list[StoreEvent]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, events: list[StoreEvent], clock: Clock) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", max_bytes=2**30, on_event=events.append, clock=clock)
