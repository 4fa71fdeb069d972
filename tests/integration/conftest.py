from pathlib import Path

import pytest
from unit.compression.requests import convolutional_model, store_at, tier_request

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.store import ArtifactStore
from serveprune.config.server import StoreConfig


@pytest.fixture
def store_config(tmp_path: Path) -> StoreConfig:
    return store_at(tmp_path / "store")[0]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path / "store")[1]


@pytest.fixture
def request_of_tier(tmp_path: Path) -> BuildRequest:
    return tier_request(convolutional_model(tmp_path))
