"""A disk that fills up during a build."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.grpc.messages import of_arrays

from e2e.conftest import Serve
from e2e.deployment import fashion_images, write_fashion
from e2e.server_process import COMMAND

DISK_BYTES = 24 * 2**20
LEFT_BYTES = 64 * 2**10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, enough for one build and its temporary files; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk_fails_the_build_clearly_and_dense_serves_on(
    serve: Serve, dense_store: Path, small_disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "deployment").mkdir()
    config = write_fashion(tmp_path / "deployment", store={"path": str(small_disk / "store")})
    subprocess.run(["cp", "-r", str(dense_store), str(small_disk / "store")], check=True)
    server = serve(config).wait_open()
    child = server.build_child()
    child.suspend()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "other").write_bytes(bytes(free - LEFT_BYTES))
    child.resume()

    (reason,) = server.wait_state("fashion", "int8", "failed")["reasons"]

    assert "No space left on device" in reason
    assert "bytes free" in reason
    answer = server.stub.ModelInfer(of_arrays("fashion@int8", image=fashion_images(config.parent, 1)))
    assert answer.parameters["tier"].string_param == "dense"
    _check_sound(small_disk / "store")
    assert server.stop() == 0

    # With room again, the next start builds what is missing.
    (small_disk / "other").unlink()
    again = serve(config).wait_open()
    assert again.wait_state("fashion", "int8", "ready")["quality"]
    assert again.stop() == 0
    _check_sound(small_disk / "store")


def test_file_size_limit_fails_the_build_clearly_and_dense_serves_on(
    serve: Serve, dense_store: Path, tmp_path: Path
) -> None:
    server = serve(write_fashion(tmp_path, stored=dense_store)).wait_open()
    child = server.build_child()
    child.suspend()
    child.rlimit(1, (LEFT_BYTES, LEFT_BYTES))  # RLIMIT_FSIZE
    child.resume()

    (reason,) = server.wait_state("fashion", "int8", "failed")["reasons"]

    assert "File too large" in reason
    answer = server.stub.ModelInfer(of_arrays("fashion@int8", image=fashion_images(tmp_path, 1)))
    assert answer.parameters["tier"].string_param == "dense"
    _check_sound(tmp_path / "store")


def _check_sound(store: Path) -> None:
    verified = subprocess.run(
        [*COMMAND, "cache", "verify", "--store", str(store)], capture_output=True, text=True, timeout=100
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert not list((store / "tmp").iterdir())
