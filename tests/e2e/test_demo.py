"""`serveprune demo --check`, as a stranger runs it first."""

import shutil
from pathlib import Path

import pytest

from e2e.conftest import DemoRun, run_demo
from e2e.deployment import artifact_folder
from e2e.server_process import marked_processes


@pytest.fixture
def second_demo(demo: DemoRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo.folder, tmp_path / "demo"))


def test_demo_builds_and_answers_with_every_tier_when_its_folder_is_empty(demo: DemoRun) -> None:
    assert "check passed: every tier answered over HTTP and gRPC" in demo.output
    for column in ("quality", "latency", "speedup", "size"):
        assert column in demo.output
    rows = [line.split() for line in demo.output.splitlines() if line.startswith((" minilm ", " fashion "))]
    assert [row[:3] for row in rows] == [
        [model, tier, "ready"]
        for model, strongest in (("minilm", "small-int8"), ("fashion", "tiny-int8"))
        for tier in ("dense", "int8", "lean", "lean-int8", strongest)
    ]
    assert "Traceback" not in demo.output
    assert not marked_processes(demo.folder)


def test_demo_builds_nothing_when_its_artifacts_are_in_the_store(second_demo: Path) -> None:
    again = run_demo(second_demo)

    assert again.exit_code == 0, again.output
    assert "check passed" in again.output
    assert "building" not in again.output


def test_demo_sets_a_truncated_artifact_aside_and_builds_it_again(second_demo: Path) -> None:
    damaged = artifact_folder(second_demo / "store", model="fashion", tier="int8")
    graph = damaged / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])

    again = run_demo(second_demo)

    assert again.exit_code == 0, again.output
    assert "fashion int8: building" in again.output
    assert "minilm int8: building" not in again.output
    assert any(damaged.name in entry.name for entry in (second_demo / "store" / "quarantine").iterdir())
    # The build is deterministic, and what it stored is whole.
    assert graph.read_bytes() == whole


def test_demo_fails_with_the_reason_when_a_gate_refuses(second_demo: Path) -> None:
    config = second_demo / "serveprune.yaml"
    demanding = config.read_text(encoding="utf-8").replace("min_quality: 0.97", "min_quality: 0.9999")
    config.write_text(demanding, encoding="utf-8")

    refused = run_demo(second_demo)

    assert refused.exit_code == 1, refused.output
    (failure,) = [line for line in refused.output.splitlines() if line.startswith("check failed: minilm@int8 is")]
    assert "refused" in failure
    assert "0.9999" in failure
    # A gate is judged from what was measured when the tier was built.
    assert "building" not in refused.output
