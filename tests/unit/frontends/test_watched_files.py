import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serveprune.errors import FailedPrecondition, InvalidArgument
from serveprune.frontends.watched_files import Contents, OnReload, Reload, Watch, WatchedFiles, read_files


class Story:
    """A file, what is made of it, and what was told of its changes."""

    def __init__(self, tmp_path: Path) -> None:
        self.file = tmp_path / "word"
        self.file.write_text("old")
        self.told: list[tuple[str, Reload]] = []
        self.made = 0
        self.watched = WatchedFiles({self.file: "the.word"}, self._make, name="word")

    def look(self) -> None:
        self.watched.look(lambda what, outcome: self.told.append((what, outcome)))

    def _make(self, contents: Contents) -> str:
        self.made += 1
        word = contents[self.file].decode()
        if word.startswith("bad"):
            raise InvalidArgument("expected another word")
        return word


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_value_is_made_anew_only_when_content_changes(story: Story) -> None:
    story.look()
    story.file.write_text("old")
    story.look()
    assert (story.made, story.told) == (1, [])

    story.file.write_text("new")
    story.look()
    assert (story.watched.current, story.told) == ("new", [("word", Reload.TAKEN)])
    story.look()
    assert story.made == 2


def test_content_that_cannot_be_used_is_told_once_when_it_stays(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    story.file.write_text("bad")
    story.look()
    assert story.told == []
    for _ in range(3):
        story.look()
    assert (story.watched.current, story.told) == ("old", [("word", Reload.REFUSED)])
    assert [record.getMessage() for record in caplog.records] == [
        "word changed on disk and cannot be used; the old one stays: expected another word"
    ]

    story.file.write_text("bad, differently")
    for _ in range(3):
        story.look()
    assert story.told == [("word", Reload.REFUSED)] * 2


def test_content_that_cannot_be_used_is_not_told_when_it_is_replaced_at_once(story: Story) -> None:
    for word in ("bad", "badder", "old", "bad", "new"):
        story.file.write_text(word)
        story.look()
    assert (story.watched.current, story.told) == ("new", [("word", Reload.TAKEN)])


def test_file_that_is_gone_keeps_the_value_and_is_told(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    story.file.unlink()
    for _ in range(3):
        story.look()
    assert (story.watched.current, story.told) == ("old", [("word", Reload.REFUSED)])
    assert "the.word: expected a readable file" in caplog.text

    story.file.write_text("old")
    story.look()
    story.file.unlink()
    for _ in range(2):
        story.look()
    assert story.told == [("word", Reload.REFUSED)] * 2


def test_value_is_taken_up_when_a_link_is_turned_to_another_file(tmp_path: Path) -> None:
    """As Kubernetes replaces what it mounts."""
    for word in ("old", "new"):
        (tmp_path / word).write_text(word)
    link = tmp_path / "link"
    link.symlink_to("old")
    watched = WatchedFiles({link: "the.word"}, lambda contents: contents[link], name="word")
    other = tmp_path / "other"
    other.symlink_to("new")
    other.replace(link)
    watched.look(lambda what, outcome: None)
    assert watched.current == b"new"


def test_files_that_cannot_be_read_are_refused_at_first(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * (2**20 + 1))
    for file, problem in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (large, "at most 1048576"),
    ):
        with pytest.raises(FailedPrecondition, match=r"^the\.word: expected a .*file") as refused:
            read_files({file: "the.word"})
        assert problem in refused.value.message


class _Looked:
    def __init__(self, then: Callable[[int], None]) -> None:
        self.times, self._then = 0, then

    def look(self, on_reload: OnReload) -> None:
        self.times += 1
        self._then(self.times)


def test_watch_looks_on_after_a_look_that_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serveprune.frontends.watched_files._LOOK_SECONDS", 0.01)
    third = threading.Event()

    def then(times: int) -> None:
        if times == 1:
            raise RuntimeError("once")
        if times == 3:
            third.set()

    watch = Watch([_Looked(then)], on_reload=lambda what, outcome: None)
    watch.start()
    assert third.wait(20)
    watch.stop()
    assert "a look for changed files failed" in caplog.text
