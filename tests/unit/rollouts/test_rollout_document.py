import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.errors import DataLoss
from serveprune.rollouts.rollout import Phase, Rollout
from serveprune.rollouts.rollout_document import read_rollout, rollout_document

ROLLOUT = Rollout(
    "0123456789abcdef" * 4,
    Phase.PAUSED,
    step=3,
    step_seconds=12.5,
    is_released=True,
    held_by="ann",
    reason="paused by ann",
    figures="error ratio 0 (0 of 500; ...)",
    who="ann",
    is_ready=True,
    at=1234.5,
)


def written(**changes: Any) -> bytes:
    return json.dumps({**json.loads(rollout_document(ROLLOUT)), **changes}).encode()


def test_rollout_is_read_as_it_was_written_but_for_what_a_restart_makes_void() -> None:
    read = read_rollout(rollout_document(ROLLOUT))
    assert (read.is_ready, read.at) == (False, None)
    assert Rollout(**{**_fields(read), "is_ready": True, "at": 1234.5}) == ROLLOUT


def _fields(rollout: Rollout) -> dict[str, Any]:
    return {name: getattr(rollout, name) for name in Rollout.__dataclass_fields__}


def test_document_is_readable_json() -> None:
    document = json.loads(rollout_document(ROLLOUT))
    assert (document["schema_version"], document["phase"], document["held_by"]) == (1, "paused", "ann")
    assert {"at", "is_ready"}.isdisjoint(document)


def test_whole_seconds_are_read_when_another_program_wrote_them() -> None:
    assert read_rollout(written(step_seconds=12)).step_seconds == 12.0


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (b"", "document: Invalid JSON"),
        (rollout_document(ROLLOUT)[:-20], "document: Invalid JSON"),
        (b"\xff\xfe", "document: "),
        (b"[]", "document: "),
        (b"{}", "schema_version: Field required"),
        (written(schema_version=2), "schema_version: "),
        (written(identity="x"), "identity: "),
        (written(phase="done"), "phase: "),
        (written(step=-1), "step: "),
        (written(step="3"), "step: "),
        (written(step=1.5), "step: "),
        (written(step=True), "step: "),
        (written(step_seconds=-0.1), "step_seconds: "),
        (rollout_document(ROLLOUT).replace(b"12.5", b"NaN"), "step_seconds: "),
        (rollout_document(ROLLOUT).replace(b"12.5", b"1e999"), "step_seconds: "),
        (written(is_released=1), "is_released: "),
        (written(held_by=""), "held_by: "),
        (written(who=5), "who: "),
        (written(at=5.0), "at: Extra inputs are not permitted"),
    ],
)
def test_document_is_refused_when_it_is_not_what_was_written(document: bytes, told: str) -> None:
    with pytest.raises(DataLoss, match=r"^expected a rollout's document of schema 1, got another one") as caught:
        read_rollout(document)
    assert f"({told}" in caught.value.message or f"; {told}" in caught.value.message


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_document_is_refused_whatever_else_it_is(document: bytes) -> None:
    with pytest.raises(DataLoss):
        read_rollout(document)


@given(st.data())
def test_altered_document_is_read_or_refused_but_never_anything_else(data: st.DataObject) -> None:
    document = bytearray(rollout_document(ROLLOUT))
    document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataLoss):
        assert read_rollout(bytes(document)).phase in Phase
