import os
import time
from pathlib import Path

from serveprune.handlers.ray_serve.open_artifacts import Loaded, OpenArtifacts, OpenGraphs

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


def test_what_no_ingress_has_open_is_dropped_and_what_one_has_stays(tmp_path: Path) -> None:
    graphs, noted = OpenGraphs(tmp_path), OpenArtifacts(tmp_path / "m@int8")
    for each in (ONE, TWO, TWO, THREE):
        noted.add(each)
        graphs.add("m@int8", each)
    long_ago = time.time() - 3600
    for each in (ONE, TWO, THREE):
        os.utime(tmp_path / "m@int8" / f"{each.key}.{each.backend}", (long_ago, long_ago))
    graphs.discard("m@int8", ONE)
    graphs.discard("m@int8", TWO)  # one of two sessions over it
    graphs.note()
    noted.drop_unused()
    graphs.stop()
    assert sorted(noted.read()) == [TWO, THREE]
