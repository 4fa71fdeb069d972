"""A client nobody here wrote, in a process of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from e2e.deployment import fashion_images
from e2e.server_process import ServerProcess

SCRIPT = Path(__file__).with_name("triton_client_script.py")
CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def report(
    server: ServerProcess, clients_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("triton")
    np.save(folder / "images.npy", fashion_images(server.folder, 100))
    directions = {
        "http": server.endpoints["http"],
        "grpc": server.endpoints["grpc"],
        "images": str(folder / "images.npy"),
        "png": str(server.folder / "boot.png"),
    }
    (folder / "directions.json").write_text(json.dumps(directions), encoding="utf-8")
    finished = subprocess.run(
        [str(clients_python), str(SCRIPT), str(folder / "directions.json")], capture_output=True, text=True, timeout=250
    )
    assert finished.returncode == 0, finished.stderr
    said: dict[str, str | None] = json.loads(finished.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("check", CHECKS)
def test_triton_client_is_content(report: dict[str, str | None], check: str) -> None:
    assert report[check] is None, report[check]


@pytest.mark.parametrize("order", ["triton,serveprune", "serveprune,triton"])
def test_triton_client_lives_in_one_process_with_the_front_end(
    server: ServerProcess, clients_python: Path, order: str
) -> None:
    (packages,) = (clients_python.parents[1] / "lib").glob("python*/site-packages")
    # Appended, so that grpc and protobuf are this environment's, as they would be in one environment.
    append = f"import sys, runpy; sys.path.append({str(packages)!r}); sys.argv[:] = sys.argv[1:]; "
    run = "runpy.run_path(sys.argv[0], run_name='__main__')"
    script = Path(__file__).with_name("shared_process_script.py")
    finished = subprocess.run(
        [sys.executable, "-c", append + run, str(script), order, server.endpoints["grpc"]],
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert finished.returncode == 0, finished.stderr
    assert "both answered" in finished.stdout
