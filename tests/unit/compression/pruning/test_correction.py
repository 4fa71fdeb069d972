from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.compression.graphs import IMAGE_SHAPE, convolutional_graph

from serveprune.artifacts.manifest import LatencyRecord
from serveprune.compression.pruning import pruning as module
from serveprune.compression.pruning.pruning import Pruning
from serveprune.config.pruning import PruneOptions
from serveprune.evaluation.dataset import Dataset

WANTED = 1 / 1.2


def latency(ratio: float) -> LatencyRecord:
    """What a quiet machine measures."""
    low, high = ratio - 0.001, ratio + 0.001
    return LatencyRecord(
        dense_ms=10, tier_ms=10 * ratio, ratio=ratio, ratio_low=low, ratio_high=high, batch_size=8, rounds=25, threads=1
    )


@pytest.mark.parametrize(
    ("ratios", "taken", "narrower"),
    [
        ([WANTED * 1.03], 0, False),
        ([WANTED * 1.08, WANTED], 1, True),
        ([WANTED * 1.08, WANTED * 0.5], 0, False),
    ],
)
def test_carry_out_allocates_once_more_and_takes_the_plan_nearest_to_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratios: list[float], taken: int, narrower: bool
) -> None:
    measured = iter(map(latency, ratios))
    monkeypatch.setattr(module, "measure_latency", lambda *_, **__: next(measured))
    rows = np.random.default_rng(0).standard_normal((32, *IMAGE_SHAPE)).astype(np.float32)
    pruning = Pruning(
        convolutional_graph(tmp_path / "net.onnx", channels=128),
        PruneOptions.model_validate({"target": {"speedup": 1.2}, "round_to": 4}),
        samples=Dataset(tuple({"image": row} for row in rows)),
        workspace=tmp_path,
        threads=1,
        serving_threads=1,
        cache=None,
        seed=0,
    )
    done: list[float] = []
    plan = pruning.plan()
    report: dict[str, Any] = pruning.carry_out(plan, output=tmp_path / "lean.onnx", progress=done.append)
    assert next(measured, None) is None
    assert report["allocations"] == len(ratios)
    assert report["measured_ms"]["pruned"] == pytest.approx(10 * ratios[taken])
    (before,), (after,) = ([group.after for group in plan.groups], [group["after"] for group in report["groups"]])
    assert after < before if narrower else after == before
    assert done == sorted(done)
