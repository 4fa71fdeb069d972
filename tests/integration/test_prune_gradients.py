"""Pruning by gradients, through whole builds: what the choice of channels alone is worth, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.test_prune_real_models import DEMO, FASHION, built

from serveprune.errors import InvalidArgument

pytestmark = pytest.mark.slow


def _agreement(prune: dict[str, Any], folder: Path, *, labelled: bool = False) -> float:
    """Build without repair, which would hide the choice; return the part of samples with dense's top class."""
    config: dict[str, Any] = {**FASHION, "evaluation": {"file": DEMO / "fashion_evaluation.npz", "samples": 400}}
    if labelled:
        with np.load(DEMO / "fashion_evaluation.npz") as arrays:
            # What the tier is judged on are the first 400.
            part = {name: arrays[name][1000:1128] for name in ("image", "label")}
        folder.mkdir(exist_ok=True)
        np.savez(folder / "labelled.npz", **part)
        config["calibration"] = {"file": folder / "labelled.npz"}
    step = {"prune": {"target": {"ratio": 0.75}, "repair": [], **prune}}
    manifest, _ = built(config, [step], folder)
    assert manifest.passes[0].report["masked_equivalence"] < 1e-4
    assert manifest.measurements is not None
    return manifest.measurements.quality["top1_agreement"]


def test_gradients_beat_random_when_no_repair_hides_the_choice(tmp_path: Path) -> None:
    control = _agreement({"importance": "random"}, tmp_path / "random")
    without_labels = _agreement({"importance": "fisher"}, tmp_path / "fisher")
    with_labels = _agreement({"importance": "taylor", "loss": "labels"}, tmp_path / "taylor", labelled=True)
    assert min(without_labels, with_labels) > control + 0.1


def test_gradients_of_labels_are_refused_when_the_calibration_set_has_none(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument, match="real: expected a classifier and labels for loss: labels; the calibration"
    ):
        _agreement({"importance": "taylor", "loss": "labels"}, tmp_path)
