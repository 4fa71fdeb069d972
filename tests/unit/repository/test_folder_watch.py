import shutil
from pathlib import Path

import pytest
from unit.repository.test_model_repository import FAILED, READY, Repository, wait_until

from serveprune.repository.folder_watch import FolderWatch


class Watched(Repository):
    """A repository in mode poll, and a watch whose looks the test takes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.repository = self.made(mode="poll", poll_seconds=1000.0)
        self.repository.attach(self.stage)
        self.watch = FolderWatch(self.repository, poll_seconds=1000.0)

    def look(self) -> None:
        self.watch.look()
        assert wait_until(lambda: not self.repository._flights)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_folder_is_loaded_once_it_was_the_same_twice_and_unloaded_when_it_is_gone(watched: Watched) -> None:
    watched.write("m")
    watched.look()
    assert watched.stage.applied == []
    watched.write("m", factor=2)
    watched.look()
    assert watched.stage.applied == []
    watched.look()
    assert watched.stage.applied == [["fixed", "m"]]
    watched.look()
    assert len(watched.stage.applied) == 1
    shutil.rmtree(watched.folder / "models" / "m")
    watched.look()
    assert watched.stage.applied[-1] == ["fixed"]


def test_changed_folder_is_loaded_anew_and_the_former_serves_until_it_is_whole(watched: Watched) -> None:
    watched.write("m")
    watched.look()
    watched.look()
    watched.write("m", factor=2)
    watched.look()
    assert len(watched.stage.applied) == 1
    watched.look()
    assert len(watched.stage.applied) == 2
    assert watched.stage.contents[0] != watched.stage.contents[1]


def test_broken_folder_is_tried_once_until_it_changes_or_the_config_file_does(watched: Watched) -> None:
    watched.write("m")
    watched.stage.state = FAILED
    for _ in range(4):
        watched.look()
    assert watched.stage.applied == [["fixed", "m"], ["fixed"]]
    assert "it is broken" in watched.repository.unloaded()["m"]
    watched.stage.state = READY
    watched.repository.apply(watched.repository._file)
    watched.look()
    assert watched.stage.applied[-1] == ["fixed", "m"]


def test_refused_folder_is_told_once_and_the_others_are_loaded(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.write("m")
    (watched.folder / "models" / "pickled").mkdir()
    (watched.folder / "models" / "pickled" / "model.pkl").write_bytes(b"")
    for _ in range(3):
        watched.look()
    assert watched.stage.applied == [["fixed", "m"]]
    assert sum("pickles are refused" in record.getMessage() for record in caplog.records) == 1


def test_nothing_is_unloaded_when_the_folder_cannot_be_read(watched: Watched) -> None:
    watched.write("m")
    watched.look()
    watched.look()
    (watched.folder / "models").rename(watched.folder / "away")
    watched.look()
    assert watched.stage.applied == [["fixed", "m"]]
    (watched.folder / "away").rename(watched.folder / "models")
    watched.look()
    assert watched.stage.applied == [["fixed", "m"]]
