from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.artifacts.layout import StoreLayout
from serveprune.errors import InvalidArgument

LAYOUT = StoreLayout(Path("/store"))


@given(st.text(max_size=400))
def test_lock_stays_in_its_folder_when_the_name_is_odd(name: str) -> None:
    path = LAYOUT.lock(name)
    assert path.parent == LAYOUT.locks
    assert path != LAYOUT.removal_lock
    assert len(path.name.encode()) <= 255
    assert LAYOUT.failure_log(name).parent.parent == LAYOUT.failures


@given(st.text(max_size=80), st.text(max_size=80))
def test_lock_differs_when_names_differ(one: str, other: str) -> None:
    assert (LAYOUT.lock(one) == LAYOUT.lock(other)) == (one == other)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_artifact_raises_when_key_is_no_digest(key: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a SHA-256"):
        LAYOUT.artifact(key)
