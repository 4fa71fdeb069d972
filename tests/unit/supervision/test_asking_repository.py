from pathlib import Path

import pytest

from serveprune.errors import (
    Code,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ServePruneError,
    Unavailable,
)
from serveprune.repository.model_folder import ModelFolder
from serveprune.supervision.asking_repository import AskingRepository
from serveprune.supervision.messages import ChangeAsked, ChangeEnded


class Asking(AskingRepository):
    def __init__(self, folder: Path, *, answers: bool = True) -> None:
        self.sent: list[ChangeAsked] = []
        super().__init__(self._note, ModelFolder(folder), served=lambda: {"served"})
        self._answers = answers

    def _note(self, message: ChangeAsked) -> bool:
        self.sent.append(message)
        return self._answers


def test_changes_are_asked_for_and_each_gets_its_own_outcome(tmp_path: Path) -> None:
    asking = Asking(tmp_path)
    load, unload = asking.load("a"), asking.unload("b")
    assert [(each.action, each.name) for each in asking.sent] == [("load", "a"), ("unload", "b")]
    asking.take(ChangeEnded(number=asking.sent[1].number))
    assert unload.result(0) is None
    assert not load.done()
    assert not load.cancel()
    asking.take(ChangeEnded(number=asking.sent[0].number))
    assert load.result(0) is None
    # One that is told twice, or never was asked for, concerns nobody.
    asking.take(ChangeEnded(number=asking.sent[0].number))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.NOT_FOUND, NotFound),
        (Code.INVALID_ARGUMENT, InvalidArgument),
        (Code.FAILED_PRECONDITION, FailedPrecondition),
        (Code.UNAVAILABLE, Unavailable),
        (Code.INTERNAL, Internal),
        (Code.DATA_LOSS, Internal),
    ],
)
def test_error_is_that_of_the_supervisor(tmp_path: Path, code: Code, kind: type[ServePruneError]) -> None:
    asking = Asking(tmp_path)
    load = asking.load("a")
    asking.take(ChangeEnded(number=asking.sent[0].number, code=code, message="it is broken"))
    error = load.exception(0)
    assert type(error) is kind
    assert str(error) == "it is broken"


def test_change_fails_when_the_supervisor_is_gone(tmp_path: Path) -> None:
    assert isinstance(Asking(tmp_path, answers=False).load("a").exception(0), Unavailable)


def test_what_is_in_the_folder_and_not_served_is_not_loaded(tmp_path: Path) -> None:
    for name in ("served", "other"):
        (tmp_path / name).mkdir()
    assert Asking(tmp_path).unloaded() == {"other": "not loaded"}
    assert Asking(tmp_path / "none").unloaded() == {}
