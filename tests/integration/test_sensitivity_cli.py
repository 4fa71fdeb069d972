import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from unit.compression.graphs import elementwise_graph

import serveprune.demo

COMMAND = (sys.executable, "-c", "from serveprune.cli.app import main; main()")
DEMO = Path(serveprune.demo.__path__[0])
SAMPLES = ("--calibration", "calibration.npz", "--evaluation", "evaluation.npz")


def serveprune_command(folder: Path, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    whole = [*COMMAND, command, *arguments, "--store", "store"]
    return subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def sensitivity(folder: Path, *more: str, samples: bool = True) -> "subprocess.CompletedProcess[str]":
    return serveprune_command(folder, "sensitivity", "net.onnx", *(SAMPLES if samples else ()), *more)


def failure(result: "subprocess.CompletedProcess[str]") -> str:
    """What `--json` says about input of which nothing can be measured."""
    assert result.returncode == 2, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    assert (told["outcome"], told["sensitivity"], told["picture"]) == ("failed", None, None)
    (reason,) = told["reasons"]
    return str(reason)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo's Fashion-MNIST network, with few samples."""
    (tmp_path / "net.onnx").write_bytes((DEMO / "fashion.onnx").read_bytes())
    for name, count in (("calibration", 48), ("evaluation", 64)):
        with np.load(DEMO / f"fashion_{name}.npz") as arrays:
            np.savez(tmp_path / f"{name}.npz", **{key: arrays[key][:count] for key in arrays})
    return tmp_path


def test_sensitivity_tells_of_each_group_and_layer_what_it_costs_and_gains_and_keeps_it(folder: Path) -> None:
    (folder / "wide.yaml").write_text("passes: [{prune: {target: {ratio: 0.5}, round_to: 32}}, {quantize: {}}]\n")
    result = sensitivity(folder, "--profile", "wide.yaml", "--json", "--plot", "net.png")
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    assert (told["outcome"], told["reasons"], told["picture"]) == ("measured", [], "net.png")
    found = told["sensitivity"]
    assert (found["metric"], found["evaluation_samples"], found["cached"]) == ("top1_agreement", 64, False)
    assert found["least_loss"] == 1 / 64
    pruned = [change for change in found["changes"] if change["change"] == "prune"]
    quantized = [change for change in found["changes"] if change["change"] == "int8"]
    assert {change["kind"] for change in pruned} == {"channels"}
    assert {change["after"] % 32 for change in pruned} == {0}
    assert len(quantized) == 10
    for change in found["changes"]:
        assert change["quality_lost"] == pytest.approx(1 - change["quality"]["top1_agreement"])
        assert change["saved_ms_low"] <= change["saved_ms"] <= change["saved_ms_high"]
        assert change["saved_bytes"] > 0
        assert change["error"] > 0
    by_layer: dict[str, list[tuple[int, float]]] = {}
    for change in pruned:
        by_layer.setdefault(change["layer"], []).append((change["after"], change["error"]))
    assert any(len(points) > 1 for points in by_layer.values())
    for points in by_layer.values():  # fewer channels, larger errors
        errors = [error for _, error in sorted(points, reverse=True)]
        assert errors == sorted(errors)
    bargains = [change["ms_per_point"] or 0.0 for change in found["changes"]]
    assert bargains == sorted(bargains, reverse=True)
    with Image.open(folder / "net.png") as image:
        assert image.format == "PNG"

    again = sensitivity(folder, "--profile", "wide.yaml")
    assert again.returncode == 0, again.stderr
    assert f"kept since {found['measured']}" in again.stdout
    assert "measuring" not in again.stderr

    # The quantize pass finds the errors in the store: the layer with the largest stays in float.
    worst = max(quantized, key=lambda change: change["error"])
    entries = {path: path.stat().st_mtime_ns for path in folder.glob("store/pass-cache/*.json")}
    (folder / "careful.yaml").write_text("passes: [{quantize: {keep_float: 1}}]\n")
    built = serveprune_command(folder, "compress", "net.onnx", "--profile", "careful.yaml", *SAMPLES, "--json")
    assert built.returncode in (0, 3), built.stderr + built.stdout
    manifests = [json.loads(path.read_text()) for path in folder.glob("store/artifacts/*/manifest.json")]
    ((step,),) = [manifest["passes"] for manifest in manifests if manifest["kind"] == "tier"]
    assert step["report"]["kept_float"] == [
        {"layer": worst["layer"], "node": worst["name"], "error": pytest.approx(worst["error"])}
    ]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("store/pass-cache/*.json")} == entries


def test_sensitivity_of_a_profile_without_prune_looks_at_int8_alone_and_prints_a_table(folder: Path) -> None:
    result = sensitivity(folder, "--profile", "int8", "--samples", "16")
    assert result.returncode == 0, result.stderr
    assert "top1_agreement with dense on 16 of 64 samples of evaluation.npz" in result.stdout
    assert "int8 Conv" in result.stdout
    assert "channels" not in result.stdout
    assert "most sensitive to int8, by error: " in result.stdout
    assert "measured in" in result.stderr


def test_sensitivity_exits_2_when_nothing_can_be_pruned(folder: Path) -> None:
    elementwise_graph(folder / "net.onnx")
    for name in ("calibration", "evaluation"):
        np.savez(folder / f"{name}.npz", x=np.random.default_rng(len(name)).normal(size=(8, 4)).astype(np.float32))
    assert "nothing in this graph can be removed" in failure(sensitivity(folder, "--json"))
    assert "nothing in this graph can be changed" in failure(sensitivity(folder, "--json", "--profile", "int8"))


def test_sensitivity_exits_2_before_anything_is_imported_when_there_is_no_calibration_set(folder: Path) -> None:
    reason = failure(sensitivity(folder, "--json", samples=False))
    assert "expected unlabelled samples to learn from, got none" in reason
    assert not list(folder.glob("store/artifacts/*"))


def test_sensitivity_exits_2_when_the_graph_is_quantized(folder: Path) -> None:
    model = onnx.load(folder / "net.onnx")
    name = model.graph.input[0].name
    model.graph.node[0].input[0] = "back"
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", [name, "scale", "zero"], ["integers"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["back"]))
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.05]))
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.UINT8, [], [128]))
    onnx.save(model, folder / "net.onnx")
    assert "already quantized" in failure(sensitivity(folder, "--json"))
    assert "quantized already" in failure(sensitivity(folder, "--json", "--profile", "int8"))


def test_sensitivity_exits_2_when_there_is_no_such_model(folder: Path) -> None:
    result = serveprune_command(folder, "sensitivity", "nowhere.onnx", "--json")
    assert "nowhere.onnx: no such file or folder" in failure(result)


def test_sensitivity_exits_2_before_the_work_when_the_picture_could_not_be_written(folder: Path) -> None:
    result = sensitivity(folder, "--plot", "missing/net.png")
    assert result.returncode == 2
    assert "--plot: expected a file in a folder that exists, got missing/net.png" in result.stderr
    assert not (folder / "store").exists()
