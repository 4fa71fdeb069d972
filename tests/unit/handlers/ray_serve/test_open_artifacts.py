import os
import time
from pathlib import Path

from serveprune.handlers.ray_serve.open_artifacts import Loaded, OpenArtifacts

ONE, TWO, THREE = (Loaded(key * 64, "onnxruntime") for key in "abc")


def test_all_replicas_read_what_one_notes(tmp_path: Path) -> None:
    here, there = OpenArtifacts(tmp_path / "m@int8"), OpenArtifacts(tmp_path / "m@int8")
    assert there.read() == []
    here.add(ONE)
    here.add(TWO)
    assert sorted(there.read()) == [ONE, TWO]
    there.discard(ONE)
    there.discard(ONE)
    assert here.read() == [TWO]


def test_only_what_is_unused_for_long_is_dropped_and_only_beyond_what_is_kept(tmp_path: Path) -> None:
    noted = OpenArtifacts(tmp_path)
    for each in (ONE, TWO, THREE):
        noted.add(each)
    noted.drop_unused(kept=1)
    assert len(noted.read()) == 3
    long_ago = time.time() - 3600
    for each in (ONE, TWO):
        os.utime(tmp_path / f"{each.key}.{each.backend}", (long_ago, long_ago + (each is TWO)))
    noted.drop_unused(kept=2)
    assert noted.read() == [THREE, TWO]
