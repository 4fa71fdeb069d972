import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from unit.compression.lottery.classifiers import classifier_graph, labelled_arrays

from serveprune.artifacts.graph_file import plain_graph
from serveprune.artifacts.store import ArtifactStore

COMMAND = (sys.executable, "-c", "from serveprune.cli.app import main; main()")
PROFILE = """\
passes:
  - lottery:
      rounds: 2
      sparsity: 0.8
      rewind: {step: 5}
      held_out: 0.4
      training: {budget: {epochs: 4}, batch_size: 16, learning_rate: 0.05, validations: 2}
"""


def serveprune(
    folder: Path, command: str, *arguments: str, profile: str = PROFILE
) -> "subprocess.CompletedProcess[str]":
    (folder / "ticket.yaml").write_text(profile)
    samples = ("--calibration", "calibration.npz", "--evaluation", "evaluation.npz", "--store", "store")
    whole = [*COMMAND, command, "net.onnx", "--profile", "ticket.yaml", *samples, *arguments]
    return subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    classifier_graph(tmp_path / "net.onnx")
    for name, seed in (("calibration", 1), ("evaluation", 2)):
        points, labels = labelled_arrays(240, seed=seed)
        np.savez(tmp_path / f"{name}.npz", x=points, label=labels)
    return tmp_path


def test_lottery_builds_the_tier_prints_its_table_draws_it_and_finds_it_again(folder: Path) -> None:
    result = serveprune(folder, "lottery", "--json", "--plot", "ticket.png")
    told: dict[str, Any] = json.loads(result.stdout)
    # Whether so small a graph gets smaller by its zeros is the gate's affair, not the table's.
    assert result.returncode in (0, 3), result.stderr
    found = told["lottery"]
    assert (found["rewind"], found["start"], found["left"]) == ({"step": 5}, "random", 2)
    assert [round(each["sparsity"], 2) for each in found["rounds"]] == [0.55, 0.8]
    assert found["learned_samples"] + found["choosing_samples"] + found["judged_samples"] == 240
    assert found["dense"]["accuracy"] > 0.7
    assert found["dense"]["steps"] == found["rounds"][0]["ticket"]["steps"] + 5
    weights = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(_model(folder, told)).graph.initializer
    }
    with np.load(told["mask"]) as masks:
        assert all(np.array_equal(weights[name] != 0, masks[name]) for name in masks)
    manifest = json.loads((Path(told["artifact"]) / "manifest.json").read_text())
    assert "ticket_mask.npz" in manifest["files"]
    assert manifest["passes"][0]["report"] == found
    with Image.open(folder / "ticket.png") as image:
        assert image.format == "PNG"
    again = serveprune(folder, "lottery")
    assert again.returncode == result.returncode
    assert "random weights" in again.stdout
    assert f"{found['rounds'][1]['sparsity']:.1%} *" in again.stdout
    assert "weights rewound to step 5, seed 0" in again.stdout
    assert "lottery" not in again.stderr  # found, not drawn anew


def _model(folder: Path, told: dict[str, Any]) -> Path:
    artifact = ArtifactStore(folder / "store", max_bytes=2**30).open(Path(told["artifact"]).name)
    assert artifact is not None
    return plain_graph(artifact.graph, folder=folder)


def test_the_mask_stays_with_the_artifact_when_other_passes_follow(folder: Path) -> None:
    longer = f"{PROFILE}  - quantize: {{scheme: dynamic}}\n"
    first = serveprune(folder, "lottery", "--json", profile=longer)
    told: dict[str, Any] = json.loads(first.stdout)
    assert told["artifact"], first.stdout
    with np.load(told["mask"]) as masks:
        assert set(masks) == {"in.weight", "mid.weight"}
    shorter = json.loads(serveprune(folder, "lottery", "--json").stdout)
    assert np.load(shorter["mask"])["in.weight"].tolist() == np.load(told["mask"])["in.weight"].tolist()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ("unlabelled", "expected labelled samples to learn from, got a calibration set without labels"),
        ("foreign", "expected labels from 0 to 3, for scores has 4 scores, got 7"),
        ("misfit", "calibration.npz"),
    ],
)
def test_lottery_exits_2_when_the_samples_do_not_do(folder: Path, arrays: str, told: str) -> None:
    points, labels = labelled_arrays(240, seed=1)
    made = {
        "unlabelled": {"x": points},
        "foreign": {"x": points, "label": np.where(labels == 3, 7, labels)},
        "misfit": {"x": points[:, :5], "label": labels},
    }
    np.savez(folder / "calibration.npz", **made[arrays])  # type: ignore[arg-type]
    result = serveprune(folder, "lottery")
    assert result.returncode == 2, result.stderr
    assert told in " ".join(result.stderr.split())


def test_lottery_exits_2_before_the_work_when_the_profile_draws_nothing(folder: Path) -> None:
    result = serveprune(folder, "lottery", profile="passes: [{quantize: {}}]\n")
    assert result.returncode == 2
    assert "expected a profile with a `lottery` pass; the passes of ticket are: quantize" in result.stderr
    assert not (folder / "store").exists()


def test_lottery_exits_2_and_names_the_options_that_contradict_each_other(folder: Path) -> None:
    result = serveprune(folder, "lottery", profile=PROFILE.replace("sparsity: 0.8", "sparsity: 0.8\n      rate: 0.2"))
    assert result.returncode == 2
    assert "expected rate or sparsity, got both" in " ".join(result.stderr.split())


def test_the_content_of_a_checkpoint_and_not_its_place_decides_which_artifact_it_is(folder: Path) -> None:
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(folder / "net.onnx").graph.initializer}
    save_file({name: np.array(array) for name, array in weights.items()}, folder / "start.safetensors")
    profile = PROFILE.replace("{step: 5}", "{checkpoint: start.safetensors}").replace("rounds: 2", "rounds: 1")
    first = json.loads(serveprune(folder, "lottery", "--json", profile=profile).stdout)
    (folder / "start.safetensors").rename(folder / "moved.safetensors")
    moved = profile.replace("start.safetensors", "moved.safetensors")
    assert json.loads(serveprune(folder, "lottery", "--json", profile=moved).stdout)["artifact"] == first["artifact"]
    changed = {name: array * 0.5 for name, array in load_file(folder / "moved.safetensors").items()}
    save_file(changed, folder / "moved.safetensors")
    other = json.loads(serveprune(folder, "lottery", "--json", profile=moved).stdout)
    assert other["artifact"] not in (None, first["artifact"])
