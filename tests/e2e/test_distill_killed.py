"""A build that learns, killed in the middle as the kernel kills when memory runs out, and asked for again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "serveprune" / "demo"
LEARN = {"budget": {"steps": 120}, "validations": 12, "batch_size": 16}


def command(folder: Path, *, store: str) -> list[str]:
    profile = folder / "profile.yaml"
    passes = [{"prune": {"target": {"parameters_ratio": 0.3}, "repair": []}}, {"distill": LEARN}]
    profile.write_text(yaml.safe_dump({"passes": passes}))
    words = [sys.executable, "-m", "serveprune", "compress", str(DEMO / "fashion.onnx"), "--profile", str(profile)]
    words += ["--calibration", str(DEMO / "fashion_calibration.npz"), "--store", str(folder / store)]
    return [
        *words,
        "--evaluation",
        str(DEMO / "fashion_evaluation.npz"),
        "--json",
        "--out",
        str(folder / store / "out"),
    ]


def learned(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    found: dict[str, Any] = manifest["passes"][1]["report"]
    return found


def test_build_goes_on_from_its_last_look_when_it_was_killed(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(tmp_path, store="killed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(killed.glob("pass-cache/*.checkpoint")):
        assert process.poll() is None, "the build ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children(recursive=True):
        os.kill(child.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert "killed by SIGKILL" in json.loads(output)["reasons"][0]
    (checkpoint,) = killed.glob("pass-cache/*.checkpoint")

    for store in ("killed", "undisturbed"):
        finished = subprocess.run(command(tmp_path, store=store), capture_output=True, check=False, timeout=600)
        assert finished.returncode == 0, finished.stdout
    assert not checkpoint.exists()
    resumed, whole = learned(killed), learned(tmp_path / "undisturbed")
    assert [(row["step"], row["loss"], row["quality"]) for row in resumed["history"]] == [
        (row["step"], row["loss"], row["quality"]) for row in whole["history"]
    ]
    graphs = [(tmp_path / store / "out" / "model.onnx").read_bytes() for store in ("killed", "undisturbed")]
    assert graphs[0] == graphs[1]
