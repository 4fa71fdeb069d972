import os
from pathlib import Path

import pytest

from serveprune.artifacts.staging import StagingArea


@pytest.fixture
def area(tmp_path: Path) -> StagingArea:
    return StagingArea(tmp_path / "tmp")


def _leave(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "half").write_bytes(b"x")


def test_collect_removes_what_no_living_process_holds(area: StagingArea) -> None:
    # A process that is killed leaves its lock file, unlocked; one whose disk was full may leave a folder alone.
    with_lock, without_lock = area.folder / "dead", area.folder / "orphan"
    _leave(with_lock)
    _leave(without_lock)
    (area.folder / "dead.lock").touch()
    (area.folder / "never-written.lock").touch()
    with area.claim() as alive:
        alive.mkdir()
        assert area.collect() == [with_lock, without_lock]
        assert alive.is_dir()
    assert list(area.folder.iterdir()) == []


def test_claim_leaves_what_was_moved_away(area: StagingArea, tmp_path: Path) -> None:
    with area.claim() as path:
        _leave(path)
        path.rename(tmp_path / "committed")
    assert (tmp_path / "committed" / "half").exists()
    assert list(area.folder.iterdir()) == []


def test_swallow_removes_a_folder_and_leaves_nothing(area: StagingArea, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    _leave(victim)
    area.swallow(victim)
    assert not victim.exists()
    assert list(area.folder.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        area.swallow(victim)


def test_collect_works_when_there_is_nothing(area: StagingArea) -> None:
    assert area.collect() == []
    assert not os.path.lexists(area.folder)
