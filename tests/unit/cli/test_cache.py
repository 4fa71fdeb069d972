import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from unit.artifacts.artifact_factory import commit_dense, commit_tier

from serveprune.artifacts.store import Artifact, ArtifactStore
from serveprune.cli.cache import cache_app
from serveprune.errors import InvalidArgument, NotFound, ServePruneError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    monkeypatch.chdir(tmp_path)
    return ArtifactStore(tmp_path / "store", max_bytes=2**30)


def _run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(cache_app, list(arguments), env={"TZ": "UTC"})
    if isinstance(result.exception, ServePruneError):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result.output


def _json(*arguments: str, exit_code: int = 0) -> Any:
    return json.loads(_run(*arguments, "--json", exit_code=exit_code))


def _corrupt(artifact: Artifact) -> None:
    artifact.graph.write_bytes(b"grapf")


def test_ls_lists_artifacts_newest_first(store: ArtifactStore) -> None:
    dense = commit_dense(store)
    tier = commit_tier(store, created="2026-02-03T04:05:06+00:00", model="boots[bold]")
    with store.lease(tier.key):
        listed = _json("ls", "--store", str(store.root))
        lines = _run("ls", "--store", str(store.root)).splitlines()
    assert [one["key"] for one in listed] == [tier.key, dense.key]
    expected = {"kind": "tier", "model": "boots[bold]", "passes": ["quantize"], "speedup": 2.0, "leased": True}
    assert {name: listed[0][name] for name in expected} == expected
    assert listed[0]["quality"] == {"cosine": 0.9931, "sqnr_db": 21.5}
    assert listed[1]["quality"] == {}
    assert not listed[1]["leased"]
    assert sum(one["bytes"] for one in listed) == store.size_bytes()

    [row] = [line for line in lines if tier.key[:12] in line]
    for text in ("boots[bold]", "quantize", "cosine 0.9931", "2.00x", "2026-02-03 04:05", "loaded"):
        assert text in row
    [row] = [line for line in lines if dense.key[:12] in line]
    assert "loaded" not in row
    assert lines[-1].startswith("2 artifacts, ")
    assert lines[-1].endswith(f" in {store.root}")


def test_ls_takes_the_store_from_the_config_file(store: ArtifactStore, tmp_path: Path) -> None:
    commit_tier(store)
    (tmp_path / "m.onnx").write_bytes(b"graph")
    text = "store: {path: ./store, max_bytes: 1GiB}\nmodels: {m: {source: {onnx: m.onnx}}}\n"
    (tmp_path / "serveprune.yaml").write_text(text)
    assert "1 artifact, " in _run("ls", "--config", "serveprune.yaml")
    assert " of 1.0 GiB in " in _run("ls")  # the default file name


def test_commands_raise_when_there_is_no_store(store: ArtifactStore) -> None:
    for command in ("ls", "verify", "gc"):
        with pytest.raises(NotFound, match="expected an artifact store in"):
            _run(command, "--store", "absent")
        with pytest.raises(NotFound, match=r"\.serveprune"):
            _run(command)
        with pytest.raises(InvalidArgument, match="got both"):
            _run(command, "--store", "absent", "--config", "absent.yaml")
    assert not store.root.exists()


def test_verify_exits_0_when_everything_is_sound(store: ArtifactStore) -> None:
    commit_dense(store)
    assert _run("verify", "--store", "store") == "2 sound, 0 corrupt\n"
    assert _json("verify", "--store", "store")["ok"] is True


def test_verify_exits_1_when_something_was_corrupt(store: ArtifactStore) -> None:
    for name in ("a", "b"):
        _corrupt(commit_tier(store, name))
        commit_tier(store, "sound")
        if name == "a":
            told = _json("verify", "--store", "store", exit_code=1)
            assert not told["ok"]
            [problem] = [one["problem"] for one in told["results"] if one["problem"]]
            assert problem.startswith("model.onnx has SHA-256")
        else:
            told = _run("verify", "--store", "store", exit_code=1)
            assert "corrupt, set aside in quarantine: artifacts/" in told
            assert told.endswith("1 sound, 1 corrupt\n")
        _run("verify", "--store", "store")


def test_gc_tells_what_was_removed_and_how_much_was_freed(store: ArtifactStore) -> None:
    first, second = commit_tier(store, "a"), commit_tier(store, "b")
    room_bytes = store.size_bytes() * 3 // 4
    assert _run("gc", "--store", "store").startswith("0 removed, 0 B freed, ")
    freed_bytes = store.size_bytes() // 2
    told = _json("gc", "--store", "store", "--max-bytes", str(room_bytes))
    assert told["removed"][0] == f"artifacts/{first.key}"
    assert told["freed_bytes"] == freed_bytes
    assert [one.key for one in store.entries()] == [second.key]
    told = _run("gc", "--store", "store", "--max-bytes", "1B")
    assert f"removed artifacts/{second.key}\n" in told


def test_gc_raises_when_the_size_is_none(store: ArtifactStore) -> None:
    commit_tier(store)
    with pytest.raises(InvalidArgument, match="expected a size above 0 such as 500MB or 5GiB, got 'lots'"):
        _run("gc", "--store", "store", "--max-bytes", "lots")
