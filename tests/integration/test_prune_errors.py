"""What a person reads when pruning cannot be done, through the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner
from unit.compression.graphs import IMAGE_SHAPE, convolutional_graph

from serveprune.cli.app import app

Compress = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def compress(tmp_path: Path) -> Compress:
    """Return what runs `compress` on a small convolutional graph with these prune options."""
    graph = convolutional_graph(tmp_path / "net.onnx")
    rows = np.random.default_rng(0).standard_normal((96, *IMAGE_SHAPE)).astype(np.float32)
    np.savez(tmp_path / "evaluation.npz", image=rows[:32])
    np.savez(tmp_path / "calibration.npz", image=rows[32:])
    np.savez(tmp_path / "few.npz", image=rows[32:36])

    def run(*, calibration: str | None = "calibration.npz", **options: Any) -> tuple[int, dict[str, Any]]:
        profile = tmp_path / "profile.yaml"
        profile.write_text(yaml.safe_dump({"passes": [{"prune": options}]}))
        words = ["compress", str(graph), "--profile", str(profile), "--store", str(tmp_path / "store"), "--json"]
        words += ["--evaluation", str(tmp_path / "evaluation.npz"), "--out", str(tmp_path / "out")]
        words += ["--calibration", str(tmp_path / calibration)] if calibration else []
        finished = CliRunner().invoke(app, words)
        return finished.exit_code, json.loads(finished.stdout)

    return run


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target": {"parameters_ratio": 0.001}}, r"asked parameters_ratio 0.001; the prunable part allows"),
        ({"target": {"ratio": 0.5}, "ignore": ["decoder*"]}, "ignore pattern 'decoder*' matches no weight"),
        ({"target": {"ratio": 0.5}, "ignore": ["*"]}, "nothing in this graph can be removed"),
        (
            {"target": {"ratio": 0.5}, "structure": "heads"},
            "nothing in this graph can be removed; kept whole: structure: heads leaves channels whole (1); ",
        ),
        ({"target": {"ratio": 0.99}}, "ratio 0.99 removes nothing: widths go down in steps of round_to (16); lower"),
        ({"target": {"ratio": 0.5}, "round_to": 512}, "ratio 0.5 removes nothing: "),
        ({"target": {"latency_ms": 1e6}}, "asked 1e+06 ms; the dense model takes"),
    ],
)
def test_compress_exits_2_with_the_reason_when_the_wish_cannot_be_met(
    compress: Compress, options: dict[str, Any], reason: str
) -> None:
    exit_code, result = compress(**options)
    assert exit_code == 2
    assert reason in result["reasons"][0]
    if "allows" in reason:
        assert "kept whole:" in result["reasons"][0]


def test_compress_learns_from_noise_only_when_told_to(compress: Compress, tmp_path: Path) -> None:
    exit_code, refused = compress(calibration=None, target={"ratio": 0.5})
    assert exit_code == 2
    assert "synthetic_samples" in refused["reasons"][0]
    exit_code, built = compress(calibration=None, target={"ratio": 0.5}, synthetic_samples=64)
    assert (exit_code, built["outcome"]) == (0, "built")
    report = json.loads((tmp_path / "out" / "manifest.json").read_text())["passes"][0]["report"]
    assert report["learned_from"] == "synthetic inputs"
    assert "learned from 64 made-up inputs" in built["warnings"][0]
    assert report["warnings"] == built["warnings"]


def test_compress_warns_when_calibration_is_too_small(compress: Compress, tmp_path: Path) -> None:
    exit_code, built = compress(calibration="few.npz", target={"ratio": 0.5})
    assert (exit_code, built["outcome"]) == (0, "built")
    report = json.loads((tmp_path / "out" / "manifest.json").read_text())["passes"][0]["report"]
    assert report["learned_from"] == "calibration set"
    (warning,) = report["warnings"]
    assert "rows per input" in warning
    assert "give more samples" in warning
    assert built["warnings"] == [warning]
    assert report["masked_equivalence"] <= 1e-4
