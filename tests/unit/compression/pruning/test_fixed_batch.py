from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from unit.compression.graphs import save

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.learning_samples import learning_samples
from serveprune.compression.pruning.pruning import Pruning
from serveprune.config.pruning import PruneOptions
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Conv, pooling, Gemm, with a Reshape that says how many rows there are: one."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "conv": rng.normal(0, 0.2, (32, 3, 3, 3)).astype(np.float32),
        "head": rng.normal(0, 0.2, (10, 32)).astype(np.float32),
        "shape": np.array([1, 32]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        helper.make_node("Reshape", ["c", "shape"], ["d"], name="flat"),
        helper.make_node("Gemm", ["d", "head"], ["y"], name="head", transB=1),
    ]
    return save(
        tmp_path / "fixed.onnx",
        nodes,
        weights,
        inputs={"image": (TensorProto.FLOAT, [1, 3, 8, 8])},
        outputs={"y": [1, 10]},
    )


@pytest.mark.parametrize("made_up", [False, True])
def test_pruning_works_row_by_row_when_the_batch_axis_is_fixed(network: Path, tmp_path: Path, made_up: bool) -> None:
    options = PruneOptions.model_validate({"target": {"ratio": 0.5}, "synthetic_samples": 12})
    rows = np.random.default_rng(1).standard_normal((12, 3, 8, 8)).astype(np.float32)
    given = None if made_up else Dataset(tuple({"image": row} for row in rows))
    samples = learning_samples(given, options, graph=network, seed=0)
    assert len(samples) == len(set(samples.digests())) == 12
    pruning = Pruning(
        network, options, samples=samples, workspace=tmp_path, threads=1, serving_threads=1, cache=None, seed=0
    )
    assert pruning.batch_size == 1
    plan = pruning.plan()
    assert 0 < plan.groups[0].error < 1
    pruning.carry_out(plan, output=tmp_path / "lean.onnx")
    session = OnnxRuntimeBackend().load(tmp_path / "lean.onnx", threads=1)
    assert session.run({"image": rows[:1]})[0].shape == (1, 10)
