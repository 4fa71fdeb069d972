from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.containers.container import Container
from e2e.containers.engine import BASE, Engine, base_system, fetch_wheels, missing
from e2e.containers.images import FULL, SERVE, build_images
from e2e.deployment import FASHION, INT8, copy_demo_data, write_config
from e2e.graphs import write_slow_model


@pytest.fixture(scope="package")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A container engine that has the base image, and forgets everything at the end."""
    reason = missing()
    if reason is not None:
        pytest.skip(f"no containers: {reason}")
    with ThreadPoolExecutor(1) as thread:
        wheels = thread.submit(fetch_wheels)
        archive = base_system()
        wheels.result()
    engine = Engine(tmp_path_factory.mktemp("engine") / "storage")
    try:
        engine.run("podman", "import", archive, BASE, timeout=300)
        tried = engine.tried("podman", "run", "--rm", "--network", "none", BASE, "/bin/true")
        if tried.returncode != 0:
            pytest.skip(f"containers cannot run here: {tried.stderr[-500:]}")
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="package")
def images(engine: Engine) -> Engine:
    """The engine, with both images."""
    build_images(engine)
    return engine


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is mounted where an image looks for its config."""
    folder = tmp_path_factory.mktemp("config")
    copy_demo_data(folder)
    write_slow_model(folder / "slow.onnx")
    file = write_config(
        folder,
        store={"max_bytes": "1GiB"},
        server={"executors": 2, "drain_seconds": 240, "request_timeout_seconds": 300},
        profiles={"int8": INT8},
        models={"fashion": FASHION, "slow": {"source": {"onnx": "slow.onnx"}, "tiers": ["dense"]}},
    )
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert file.parent == folder
    return folder


@pytest.fixture(scope="package")
def full(images: Engine, config: Path) -> Iterator[Container]:
    """A container that built all tiers, into the volume `store`."""
    with Container(images, FULL, config=config, store="store") as container:
        container.wait_settled("fashion", "ready").wait_settled("slow", "ready")
        yield container


@pytest.fixture(scope="package")
def serving(full: Container, images: Engine, config: Path) -> Iterator[Container]:
    """A container of the small image, over the store that the other filled."""
    with Container(images, SERVE, config=config, store="store") as container:
        yield container.wait_settled("fashion", "ready").wait_settled("slow", "ready")
