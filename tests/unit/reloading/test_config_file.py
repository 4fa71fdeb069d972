import os
from pathlib import Path

import pytest

from serveprune.reloading.config_file import ConfigFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "serveprune.yaml"
    path.write_text("models: {}")
    return path


def test_file_that_stays_as_it_is_has_not_changed(path: Path) -> None:
    file = ConfigFile(path)
    assert not any(file.has_changed() for _ in range(3))


def test_file_has_changed_once_it_is_no_longer_written(path: Path) -> None:
    file = ConfigFile(path)
    path.write_text("models: {a: ")
    assert not file.has_changed()
    path.write_text("models: {a: {}}")
    assert not file.has_changed()
    assert file.has_changed()
    file.mark_read()
    assert not file.has_changed()


def test_file_of_the_same_size_and_time_in_its_place_is_another_one(path: Path) -> None:
    file, times = ConfigFile(path), path.stat()
    other = path.with_name("other")
    other.write_text("models: []")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    file.has_changed()
    assert file.has_changed()


def test_link_on_the_way_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serveprune.yaml").write_text("models: {}")
    (tmp_path / "data").symlink_to("first")
    file = ConfigFile(tmp_path / "data/serveprune.yaml")
    (tmp_path / "new").symlink_to("second")
    (tmp_path / "new").replace(tmp_path / "data")
    file.has_changed()
    assert file.has_changed()


def test_file_that_is_gone_and_comes_back_has_changed_each_time(path: Path) -> None:
    file, content = ConfigFile(path), path.read_text()
    path.unlink()
    file.has_changed()
    assert file.has_changed()
    file.mark_read()
    path.write_text(content)
    file.has_changed()
    assert file.has_changed()


def test_what_changed_before_it_is_marked_as_read_counts_as_read(path: Path) -> None:
    file = ConfigFile(path)
    path.write_text("models: {a: {}}")
    file.mark_read()
    assert not any(file.has_changed() for _ in range(3))
