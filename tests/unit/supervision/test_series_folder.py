import subprocess
import sys
from pathlib import Path

import pytest

from serveprune.supervision import series_folder as module
from serveprune.supervision.series_folder import remove_abandoned, series_folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_MEMORY", tmp_path)
    return tmp_path


def test_folder_is_gone_after_use(place: Path) -> None:
    with series_folder() as folder:
        assert folder.parent == place
        (folder / "counter_0.db").write_bytes(b"values")
        assert folder.stat().st_mode & 0o077 == 0
    assert not list(place.iterdir())


def test_folder_in_use_is_left_alone_and_one_of_a_killed_server_removed(place: Path) -> None:
    code = (
        "import sys, os, signal, pathlib\n"
        "from serveprune.supervision import series_folder as module\n"
        "module._MEMORY = pathlib.Path(sys.argv[1])\n"
        "with module.series_folder(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(place)], check=False, timeout=100)
    (abandoned,) = place.iterdir()

    with series_folder() as one:
        assert not abandoned.exists()
        with series_folder() as other:
            remove_abandoned(place)
            assert {one, other} == set(place.iterdir())
