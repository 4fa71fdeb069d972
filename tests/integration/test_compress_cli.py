import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from unit.compression.graphs import convolutional_graph
from unit.compression.requests import image_files, store_at

from serveprune.artifacts.key import source_recipe
from serveprune.config.model import ModelConfig, OnnxSource

COMMAND = (sys.executable, "-c", "from serveprune.cli.app import main; main()", "compress")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    image_files(tmp_path)
    return convolutional_graph(tmp_path / "net.onnx")


def arguments(folder: Path, *more: str, profile: str = "int8") -> list[str]:
    samples = ["--calibration", "calibration.npz", "--evaluation", "evaluation.npz"]
    return [*COMMAND, "net.onnx", "--profile", profile, *samples, "--store", str(folder / "store"), *more]


def compress(folder: Path, *more: str, profile: str = "int8") -> "subprocess.CompletedProcess[str]":
    command = arguments(folder, *more, profile=profile)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_compress_prints_one_json_object_and_finds_the_tier_the_second_time(tmp_path: Path, model: Path) -> None:
    first = compress(tmp_path, "--json", "--out", "out")
    assert first.returncode == 0, first.stderr
    told: dict[str, Any] = json.loads(first.stdout)
    assert told["outcome"] == "built"
    assert told["reasons"] == []
    assert told["metric"] in told["quality"]
    assert set(told["quality"]) >= {"top1_agreement", "sqnr_db"}
    assert told["speedup"] > 0
    for name in ("latency_ms", "bytes", "parameters"):
        assert set(told[name]) == {"dense", "tier"}
        assert all(value > 0 for value in told[name].values())
    assert told["bytes"]["dense"] == pytest.approx(model.stat().st_size, rel=0.1)
    assert told["seconds"] > 0
    assert told["speedup_low"] <= told["speedup"] <= told["speedup_high"]
    assert (told["batch_size"], told["threads"], told["samples"]) == (8, 1, 32)
    assert (told["parity_max_abs_error"], told["notes"], told["left_in_float"]) == (None, [], [])
    assert Path(told["artifact"]).is_dir()
    assert "net@int8:  30% quantize" in first.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "model.onnx"]
    ort.InferenceSession(tmp_path / "out" / "model.onnx")
    second = compress(tmp_path, "--json")
    assert second.returncode == 0
    again = json.loads(second.stdout)
    assert (again["outcome"], again["artifact"]) == ("cached", told["artifact"])
    assert again["quality"] == told["quality"]


def test_compress_exits_3_and_keeps_the_measurements_when_the_gate_refuses(tmp_path: Path, model: Path) -> None:
    (tmp_path / "strict.yaml").write_text("passes: [{quantize: {dtype: int8}}]\ngate: {min_quality: 1.5}\n")
    result = compress(tmp_path, "--json", "--out", "out", profile="strict.yaml")
    assert result.returncode == 3
    told = json.loads(result.stdout)
    assert told["outcome"] == "refused"
    assert "min_quality 1.5" in told["reasons"][0]
    assert 0 < told["quality"]["top1_agreement"] <= 1
    manifest = json.loads((Path(told["artifact"]) / "manifest.json").read_text())
    assert manifest["measurements"]["quality"] == told["quality"]
    assert not (tmp_path / "out").exists()


def test_compress_shows_a_table_to_people(tmp_path: Path, model: Path) -> None:
    result = compress(tmp_path)
    assert result.returncode == 0
    for word in ("top1 agreement", "speedup", "batch deviation", "parameters", "evaluation.npz", "artifact "):
        assert word in result.stdout
    assert "net@int8: built in" in result.stderr


@pytest.mark.parametrize("as_json", [True, False])
def test_compress_exits_2_when_the_graph_is_damaged(tmp_path: Path, model: Path, as_json: bool) -> None:
    model.write_bytes(model.read_bytes()[:1000])
    result = compress(tmp_path, *(["--json"] if as_json else []))
    assert result.returncode == 2
    if as_json:
        told = json.loads(result.stdout)
        assert (told["outcome"], told["quality"], told["artifact"]) == ("failed", None, None)
        assert "net.onnx" in told["reasons"][0]
        assert Path(told["log"]).is_file()
    else:
        assert "failed: net.onnx" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--calibration", "missing.npz"], "missing.npz"),
        (["--profile", "fp3"], "int8"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--evaluation", "samples.csv"], "expected a .npz or .jsonl file, got 'samples.csv'"),
        (["--task", "image-classification"], "classification, embedding, generic"),
        (["--out", "/proc/serveprune"], "--out: expected a folder that can be written"),
        (["--out", "net.onnx"], "--out: expected a folder that can be written"),
    ],
)
def test_compress_exits_2_with_one_json_object_when_an_argument_is_wrong(
    tmp_path: Path, model: Path, change: list[str], expected: str
) -> None:
    result = compress(tmp_path, "--json", *change)
    assert result.returncode == 2, result.stderr
    told = json.loads(result.stdout)
    assert told["outcome"] == "failed"
    assert expected in told["reasons"][0]
    assert "Traceback" not in result.stderr
    # It is said before anything is built.
    assert not (tmp_path / "store" / "artifacts").exists()


def test_compress_judges_by_the_task_that_it_is_told(tmp_path: Path, model: Path) -> None:
    told = json.loads(compress(tmp_path, "--json", "--task", "embedding").stdout)
    assert (told["outcome"], told["metric"]) == ("built", "cosine")
    assert "nearest_neighbour_agreement" in told["quality"]


def test_compress_shows_what_import_and_passes_found(tmp_path: Path, model: Path) -> None:
    graph = onnx.load(model)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, model)
    (tmp_path / "dynamic.yaml").write_text("passes: [{quantize: {scheme: dynamic}}]\n")
    result = compress(tmp_path, profile="dynamic.yaml")
    assert "block/conv, stem/conv" in result.stdout
    assert "the batch axis was fixed at 1" in " ".join(result.stdout.split())
    told = json.loads(compress(tmp_path, "--json", profile="dynamic.yaml").stdout)
    assert told["left_in_float"] == ["block/conv", "stem/conv"]
    assert "the batch axis was fixed at 1" in told["notes"][0]


def test_compress_exits_1_when_the_build_is_killed_for_memory(tmp_path: Path, model: Path) -> None:
    (tmp_path / "serveprune.yaml").write_text(
        """
store: {path: store}
builds: {max_memory_bytes: 24MiB}
models:
  net:
    source: {onnx: net.onnx}
    calibration: {file: calibration.npz}
"""
    )
    command = [*COMMAND, "net", "--profile", "int8", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1, result.stderr
    assert "allowed by builds.max_memory_bytes" in json.loads(result.stdout)["reasons"][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_compress_exits_130_and_leaves_nothing_when_it_is_interrupted(
    tmp_path: Path, model: Path, number: signal.Signals
) -> None:
    config, store = store_at(tmp_path / "store")
    recipe = source_recipe(ModelConfig(source=OnnxSource(onnx=model)))
    # The build waits for this lock, so it is still running when the signal comes.
    with store.single_flight(f"import-{recipe}"):
        command = arguments(tmp_path, "--json")
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stderr is not None
            assert "looking in the store" in process.stderr.readline()
            os.killpg(process.pid, number)
            output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(output)["reasons"] == ["cancelled"]
    assert store.entries() == []
    staging = config.folder / "tmp"
    assert not staging.exists() or list(staging.iterdir()) == []
