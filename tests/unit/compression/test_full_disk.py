import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.compression.graphs import convolutional_graph
from unit.compression.requests import convolutional_model, store_at, tier_request

from serveprune.artifacts.durability import require_room
from serveprune.compression.build import build
from serveprune.errors import ResourceExhausted

DISK_BYTES = 2 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; only root may mount one, and not everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


# Each stops another writer: ONNX Runtime's, the quantizer's, the pass's own.
@pytest.mark.parametrize("left_bytes", [20_000, 60_000, 120_000])
def test_build_says_that_the_disk_is_full_whatever_the_libraries_make_of_it(
    tmp_path: Path, small_disk: Path, left_bytes: int
) -> None:
    model = convolutional_model(tmp_path)
    convolutional_graph(tmp_path / "net.onnx", channels=40)
    _, store = store_at(small_disk / "store")
    request = tier_request(model)
    ballast = small_disk / "ballast"

    def fill(stage: str) -> None:
        if stage == "quantize" and not ballast.exists():
            free = int(subprocess.check_output(["stat", "-f", "-c", "%a", small_disk])) * 4096
            ballast.write_bytes(bytes(max(free - left_bytes, 0)))

    with pytest.raises(ResourceExhausted, match="No space left on device"):
        build(
            request,
            store=store,
            threads=1,
            threads_of_serving=1,
            on_progress=lambda progress: fill(progress.stage),
        )
    assert [entry.manifest.kind for entry in store.entries()] == ["dense"]
    ballast.unlink()
    require_room(small_disk)
