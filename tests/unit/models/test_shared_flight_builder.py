import time
from pathlib import Path
from threading import Event, Timer

import pytest
from e2e.s3_server import ENVIRONMENT, free_port

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.building import ServingOnlyBuilder
from serveprune.config.model import ModelConfig, OnnxSource
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.models.shared_flight_builder import SharedFlightBuilder


@pytest.fixture
def request_of_dense(tmp_path: Path) -> BuildRequest:
    (tmp_path / "model.onnx").write_bytes(b"never read")
    model = ModelConfig(source=OnnxSource(onnx=tmp_path / "model.onnx"))
    return BuildRequest(model_name="m", model=model)


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, SharedArtifactStore]:
    """A store at an address where nobody listens."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    url = f"http://127.0.0.1:{free_port()}"
    config = StoreConfig(
        path="s3://bucket/store", cache_path=tmp_path / "cache", timeout_seconds=0.5, options={"endpoint_url": url}
    )
    store = open_store(config)
    assert isinstance(store, SharedArtifactStore)
    return url, store


def builder_of(store: SharedArtifactStore, **options: float) -> SharedFlightBuilder:
    return SharedFlightBuilder(
        ServingOnlyBuilder(),
        store,
        BuildsConfig(),
        lease_seconds=1.0,
        threads_of_serving=1,
        can_build=True,
        on_event=lambda _: None,
        **options,
    )


def test_store_that_is_away_for_longer_than_patience_fails_the_build_with_its_address(
    nobody: tuple[str, SharedArtifactStore], request_of_dense: BuildRequest
) -> None:
    url, store = nobody
    told: list[BuildProgress] = []
    result = builder_of(store, patience_seconds=0.3).build(request_of_dense, on_progress=told.append, cancelled=Event())
    assert result.outcome is BuildOutcome.FAILED
    assert not result.bad_input
    assert url in result.reasons[0]
    assert {progress.stage for progress in told} == {"waiting for the shared store"}


def test_store_that_is_away_is_waited_for_until_somebody_gives_up(
    nobody: tuple[str, SharedArtifactStore], request_of_dense: BuildRequest
) -> None:
    _, store = nobody
    cancelled = Event()
    started = time.monotonic()
    Timer(1.0, cancelled.set).start()
    result = builder_of(store).build(request_of_dense, on_progress=lambda _: None, cancelled=cancelled)
    assert result.reasons == ("cancelled",)
    assert time.monotonic() - started >= 1.0
