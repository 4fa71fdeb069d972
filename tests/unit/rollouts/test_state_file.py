from pathlib import Path

import pytest

from serveprune.errors import DataLoss
from serveprune.rollouts.rollout import Phase, Rollout
from serveprune.rollouts.state_file import StateFile

IDENTITY = "a" * 64


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    state = StateFile(tmp_path, "minilm")
    assert state.is_ours()
    return state


def test_nothing_is_stored_at_first(state: StateFile) -> None:
    assert state.read() is None


def test_what_was_written_is_read_and_nothing_else_is_left(state: StateFile, tmp_path: Path) -> None:
    rollout = Rollout(IDENTITY, phase=Phase.PAUSED, step=2, step_seconds=1.5, held_by="eve", who="eve")
    for _ in range(2):
        state.write(rollout)
    assert state.read() == rollout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minilm.json", "minilm.lock"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 2}', b"\xff"])
def test_what_cannot_be_read_is_set_aside(state: StateFile, tmp_path: Path, content: bytes) -> None:
    state.path.write_bytes(content)
    with pytest.raises(DataLoss, match=r"set aside as minilm\.corrupt-"):
        state.read()
    assert [path.read_bytes() for path in tmp_path.glob("minilm.corrupt-*")] == [content]
    assert state.read() is None


def test_only_one_of_several_holds_the_lease_until_it_lets_go(state: StateFile, tmp_path: Path) -> None:
    other = StateFile(tmp_path, "minilm")
    assert state.is_ours()
    assert not other.is_ours()
    assert "process " in other.owner()
    state.close()
    assert other.is_ours()
    assert not state.is_ours()
    other.close()


def test_another_servers_file_that_cannot_be_read_is_left_alone(state: StateFile, tmp_path: Path) -> None:
    other = StateFile(tmp_path, "minilm")
    assert not other.is_ours()
    state.path.write_bytes(b"{")
    with pytest.raises(DataLoss):
        other.read()
    assert state.path.exists()
