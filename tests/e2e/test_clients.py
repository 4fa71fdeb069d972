"""Clients nobody here wrote, unmodified, each in a process of its own: their protobuf descriptors clash."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from contract.http.served import serve as serve_numpy_plane
from contract.numpy_plane import NumpyPlane

from e2e.deployment import fashion_images
from e2e.in_process import image_logits, text_vectors
from e2e.server_process import ServerProcess
from serveprune.config.server import ServerConfig
from serveprune.frontends.grpc.server import GrpcFrontend

SCRIPTS = (
    "triton_client",
    "triton_datatypes",
    "kserve_client",
    "open_inference_grpc",
    "open_inference_rest",
)
TEXTS = ("a gripping, funny and beautifully acted film", "größer als das Leben 靴", "")
IMAGES = 100


def file_of(script: str) -> Path:
    return Path(__file__).with_name("clients") / f"{script}.py"


CHECKS = [
    (script, check)
    for script in SCRIPTS
    for check in re.findall(r"^def (check_\w+)", file_of(script).read_text(encoding="utf-8"), flags=re.MULTILINE)
]


@pytest.fixture(scope="module")
def directions(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, store = tmp_path_factory.mktemp("clients"), server.folder / "store"
    images = fashion_images(server.folder, IMAGES)
    np.savez(
        folder / "arrays.npz",
        images=images,
        logits_dense=image_logits(store, images, tier="dense"),
        logits_int8=image_logits(store, images, tier="int8"),
        texts=np.array(TEXTS),
        vectors_dense=text_vectors(store, TEXTS, tier="dense"),
    )
    plane = NumpyPlane()
    config = ServerConfig.model_validate({"grpc": "127.0.0.1:0"})
    over_grpc = GrpcFrontend(plane, plane, config=config, on_rejected=lambda code: None)
    with serve_numpy_plane() as over_http:
        told = {
            "http": server.endpoints["http"],
            "grpc": server.endpoints["grpc"],
            "plane_http": str(over_http.address),
            "plane_grpc": str(over_grpc.start()),
            "arrays": str(folder / "arrays.npz"),
            "png": str(server.folder / "boot.png"),
        }
        file = folder / "directions.json"
        file.write_text(json.dumps(told), encoding="utf-8")
        yield file
        over_grpc.stop(drain_seconds=0)
    plane.close()


@pytest.fixture(scope="module")
def said() -> dict[str, Mapping[str, str | None]]:
    """Reports of the scripts that have run."""
    return {}


@pytest.mark.parametrize(("script", "check"), CHECKS)
def test_client_is_content(
    directions: Path, said: dict[str, Mapping[str, str | None]], clients_python: Path, script: str, check: str
) -> None:
    if script not in said:
        said[script] = report(clients_python, script, directions)
    problem = said[script][check]

    assert problem is None, problem


def report(python: Path, script: str, directions: Path) -> Mapping[str, str | None]:
    finished = subprocess.run(
        [str(python), str(file_of(script)), str(directions)], capture_output=True, text=True, timeout=250
    )
    assert finished.returncode == 0, finished.stderr
    said: Mapping[str, str | None] = json.loads(finished.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("order", ["triton,serveprune", "serveprune,triton"])
def test_triton_client_lives_in_one_process_with_the_front_end(
    server: ServerProcess, clients_python: Path, order: str
) -> None:
    (packages,) = (clients_python.parents[1] / "lib").glob("python*/site-packages")
    # Appended, so that grpc and protobuf are this environment's, as they would be in one environment.
    append = f"import sys, runpy; sys.path.append({str(packages)!r}); sys.argv[:] = sys.argv[1:]; "
    run = "runpy.run_path(sys.argv[0], run_name='__main__')"
    finished = subprocess.run(
        [sys.executable, "-c", append + run, str(file_of("shared_process")), order, server.endpoints["grpc"]],
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert finished.returncode == 0, finished.stderr
    assert "both answered" in finished.stdout
