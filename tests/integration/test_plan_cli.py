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
from unit.compression.graphs import convolutional_graph, elementwise_graph, embedding_graph
from unit.compression.requests import image_files

COMMAND = (sys.executable, "-c", "from serveprune.cli.app import main; main()")
COUNTED = "passes: [{prune: {target: {parameters_ratio: 0.6}, round_to: 4}}]\n"
FAST = "passes: [{prune: {target: {speedup: 1.2}, round_to: 8, workload: {batch_size: 2}}}]\n"


def serveprune(folder: Path, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    whole = [*COMMAND, command, *arguments, "--store", "store"]
    return subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def plan(folder: Path, *more: str, profile: str = COUNTED, samples: bool = True) -> "subprocess.CompletedProcess[str]":
    (folder / "lean.yaml").write_text(profile)
    given = ("--calibration", "calibration.npz", "--evaluation", "evaluation.npz") if samples else ()
    return serveprune(folder, "plan", "net.onnx", "--profile", "lean.yaml", *given, *more)


def failure(result: "subprocess.CompletedProcess[str]") -> str:
    """What `--json` says about input that cannot be planned."""
    assert result.returncode == 2, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    assert (told["outcome"], told["plan"], told["picture"]) == ("failed", None, None)
    (reason,) = told["reasons"]
    return str(reason)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image_files(tmp_path)
    convolutional_graph(tmp_path / "net.onnx")
    return tmp_path


def test_plan_prints_one_json_object_with_what_goes_and_what_is_coupled(folder: Path) -> None:
    result = plan(folder, "--json", "--plot", "plan.png")
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    assert (told["outcome"], told["reasons"], told["picture"]) == ("planned", [], "plan.png")
    found = told["plan"]
    assert (found["model"], found["tier"], found["target"]) == ("net", "lean", {"parameters_ratio": 0.6})
    assert found["predicted"]["unit"] == "parameters"
    assert 0 < found["predicted"]["after"] <= 0.6 * found["predicted"]["before"]
    assert found["calibration_samples"] == 24
    (group,) = found["groups"]
    # The residual sum ties the channels of both convolutions; the head reads them.
    assert (group["name"], group["kind"], group["before"], group["saved_ms"]) == ("stem.weight", "channels", 32, None)
    assert group["after"] < 32
    assert group["after"] % 4 == 0
    assert 0 < group["error"] == pytest.approx(found["error"])
    axes = {(each["weight"], each["axis"], each["positions_per_unit"]) for each in group["coupled"]}
    assert axes >= {
        ("stem.weight", 0, 1),
        ("block.weight", 0, 1),
        ("block.weight", 1, 1),
        ("block.bias", 0, 1),
        ("head.weight", 1, 1),
    }
    pinned = {(each["weight"], each["axis"]) for each in found["pinned"]}
    assert pinned == {("stem.weight", 1), ("head.weight", 0), ("head.bias", 0)}
    assert found["not_understood"] == []
    with Image.open(folder / "plan.png") as image:
        assert image.format == "PNG"
        assert 900 < image.width < 2400
        assert 300 < image.height < 700


def test_plan_leaves_no_tier_but_what_a_build_can_use_and_the_build_does_the_same(folder: Path) -> None:
    assert plan(folder).returncode == 0
    kept = {path: path.stat().st_mtime_ns for path in (folder / "store" / "pass-cache").glob("*.npz")}
    assert len(kept) == 1
    kinds = [json.loads(path.read_text())["kind"] for path in folder.glob("store/artifacts/*/manifest.json")]
    assert kinds == ["dense"]
    samples = ("--calibration", "calibration.npz", "--evaluation", "evaluation.npz")
    built = serveprune(folder, "compress", "net.onnx", "--profile", "lean.yaml", *samples, "--json")
    assert built.returncode == 0, built.stderr + built.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / "store" / "pass-cache").glob("*.npz")} == kept
    manifest = json.loads((Path(json.loads(built.stdout)["artifact"]) / "manifest.json").read_text())
    (step,) = manifest["passes"]
    planned = json.loads(plan(folder, "--json").stdout)["plan"]["groups"]
    assert [group["after"] for group in step["report"]["groups"]] == [group["after"] for group in planned]


def test_plan_shows_people_a_table_the_milliseconds_and_the_coupling(folder: Path) -> None:
    result = plan(folder, "--coupling", profile=FAST)
    assert result.returncode == 0, result.stderr
    assert "net, profile lean, target speedup 1.2: " in result.stdout
    assert "ms saved" in result.stdout
    assert "batch of 2, 1 thread, 24 calibration samples" in result.stdout
    assert "stem: 32 channels go together in" in result.stdout
    assert "    block.weight, axis 1" in result.stdout
    assert "pinned: is an output of the graph: head.weight[0], head.bias[0]" in result.stdout
    assert "planned in" in result.stderr


def test_plan_exits_2_and_says_how_far_one_can_get_when_the_target_is_out_of_reach(folder: Path) -> None:
    reason = failure(plan(folder, "--json", profile=COUNTED.replace("0.6", "0.01")))
    assert "asked parameters_ratio 0.01; the prunable part allows 0." in reason
    assert "is an output of the graph" in reason


def test_plan_exits_2_when_nothing_can_be_pruned(folder: Path) -> None:
    elementwise_graph(folder / "net.onnx")
    for name in ("calibration", "evaluation"):
        np.savez(folder / f"{name}.npz", x=np.random.default_rng(len(name)).normal(size=(8, 4)).astype(np.float32))
    assert "nothing in this graph can be removed" in failure(plan(folder, "--json"))


def test_plan_exits_2_before_anything_is_imported_when_there_is_no_calibration_set(folder: Path) -> None:
    result = plan(folder, samples=False)
    assert result.returncode == 2
    assert "expected unlabelled samples to learn from, got none" in result.stderr
    assert not list(folder.glob("store/artifacts/*"))


def test_plan_exits_2_when_the_graph_is_quantized(folder: Path) -> None:
    model = onnx.load(folder / "net.onnx")
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image.quantized"]))
    model.graph.node.insert(
        1, helper.make_node("DequantizeLinear", ["image.quantized", "scale", "zero"], ["image.back"])
    )
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.05]))
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.UINT8, [], [128]))
    model.graph.node[2].input[0] = "image.back"
    onnx.save(model, folder / "net.onnx")
    assert "already quantized" in failure(plan(folder, "--json"))


def test_plan_exits_2_when_the_profile_prunes_nothing(folder: Path) -> None:
    reason = failure(plan(folder, "--json", profile="passes: [{quantize: {}}]\n"))
    assert reason == "expected a profile with a `prune` pass; the passes of lean are: quantize"


def test_plan_exits_2_before_the_work_when_the_picture_could_not_be_written(folder: Path) -> None:
    result = plan(folder, "--plot", "missing/plan.png")
    assert result.returncode == 2
    assert "--plot: expected a file in a folder that exists, got missing/plan.png" in result.stderr
    assert not (folder / "store").exists()


def test_plan_leaves_whole_what_the_profile_ignores_and_says_by_which_pattern(folder: Path) -> None:
    samples = np.random.default_rng(1).integers(0, 2000, size=(48, 12))
    np.savez(folder / "calibration.npz", input_ids=samples[:32])
    np.savez(folder / "evaluation.npz", input_ids=samples[32:])
    embedding_graph(folder / "net.onnx")
    profile = "passes: [{prune: {target: {parameters_ratio: 0.97}, ignore: ['table']}}]\n"
    result = plan(folder, "--json", profile=profile)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["plan"]
    assert [(group["name"], group["kind"]) for group in found["groups"]] == [("up.weight", "neurons")]
    (whole,) = found["left_whole"]
    assert (whole["name"], whole["reason"]) == ("table", "ignore: table")


def test_plan_says_that_only_the_first_prune_pass_is_planned_when_there_are_more(folder: Path) -> None:
    twice = "passes: [{prune: {target: {ratio: 0.75}, round_to: 4}}, {prune: {target: {ratio: 0.5}, round_to: 4}}]\n"
    result = plan(folder, profile=twice)
    assert result.returncode == 0, result.stderr
    assert "; first of 2 prune passes, 24 calibration samples" in result.stdout
    assert "This is pass 1 of 2 (prune, prune). The next prune works on what this one leaves" in result.stdout


def test_plan_says_when_it_learned_from_noise_or_from_too_little(folder: Path) -> None:
    assert "warning: the 24 samples give one layer only 0.75 rows per input" in plan(folder).stdout
    (folder / "lean.yaml").write_text("passes: [{prune: {target: {ratio: 0.5}, synthetic_samples: 32}}]\n")
    made_up = serveprune(folder, "plan", "net.onnx", "--profile", "lean.yaml", "--evaluation", "evaluation.npz")
    assert made_up.returncode == 0, made_up.stderr
    assert "; 32 made-up samples, importance" in made_up.stdout
    assert "warning: learned from 32 made-up inputs" in made_up.stdout


def test_plan_keeps_its_log_apart_from_that_of_a_build(folder: Path) -> None:
    told = json.loads(plan(folder, "--json", profile=COUNTED.replace("0.6", "0.01")).stdout)
    assert told["log"].endswith("store/failures/net@lean@plan/build.log")
    samples = ("--calibration", "calibration.npz", "--evaluation", "evaluation.npz")
    failed = serveprune(folder, "compress", "net.onnx", "--profile", "lean.yaml", *samples, "--json")
    assert json.loads(failed.stdout)["log"].endswith("store/failures/net@lean/build.log")
    assert Path(told["log"]).exists()
