import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.deployment import copy_store, write_everything
from e2e.process_pair import wait_both, write_models
from e2e.server_process import COMMAND, ServerProcess, marked_environment

Serve = Callable[..., ServerProcess]

CLIENTS_PYTHON = Path(__file__).resolve().parents[2] / ".venv-clients" / "bin" / "python"


@dataclass(frozen=True)
class DemoRun:
    """A finished `serveprune demo --check`."""

    folder: Path
    exit_code: int
    output: str

    @property
    def store(self) -> Path:
        return self.folder / "store"


def run_demo(folder: Path) -> DemoRun:
    command = [*COMMAND, "demo", "--check", "--folder", str(folder)]
    finished = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        env=marked_environment(folder),
    )
    return DemoRun(folder, finished.returncode, finished.stdout)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The demo from an empty folder. Its store is only ever copied."""
    run = run_demo(tmp_path_factory.mktemp("demo"))
    assert run.exit_code == 0, run.output
    return run


@pytest.fixture(scope="session")
def fashion_store(demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both tiers of the image classifier. Only ever copied."""
    copy = tmp_path_factory.mktemp("fashion") / "store"
    return copy_store(demo.store, copy, artifacts={("fashion", "dense"), ("fashion", "int8")})


@pytest.fixture(scope="session")
def dense_store(demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the image classifier as it was registered, and no other tier. Only ever copied."""
    copy = tmp_path_factory.mktemp("dense") / "store"
    return copy_store(demo.store, copy, artifacts={("fashion", "dense")})


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that are stopped after the test."""
    with ExitStack() as running:
        yield lambda config, **options: running.enter_context(ServerProcess(config, **options))


@pytest.fixture(scope="session")
def server(demo: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with many models, for the tests that leave it as they found it."""
    config = write_everything(tmp_path_factory.mktemp("everything"), stored=demo.store)
    with ServerProcess(config) as running:
        index = running.wait_open().http.post("/v2/repository/index").json()
        yield running.wait_ready(*(entry["name"] for entry in index if "@" not in entry["name"]))


@pytest.fixture(scope="session")
def clients_python() -> Path:
    """An interpreter that has clients nobody here wrote, and nothing of serveprune."""
    if not CLIENTS_PYTHON.exists():
        pytest.fail(f"{CLIENTS_PYTHON} is missing; `make test` installs it")
    return CLIENTS_PYTHON


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two processes that imported both models themselves, for the tests that leave them as they found them."""
    with ServerProcess(write_models(tmp_path_factory.mktemp("pair"))) as running:
        yield wait_both(running.wait_open())


@pytest.fixture
def own_pair(serve: Serve, pair: ServerProcess, tmp_path: Path) -> ServerProcess:
    """Two processes of the test's own, from the same store."""
    config = write_models(tmp_path, store=pair.folder / "store", server={"drain_seconds": 60})
    return wait_both(serve(config).wait_open())
