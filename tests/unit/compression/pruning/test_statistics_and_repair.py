from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from unit.compression.graphs import save

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.consumers import consumers_of
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.importance import damping
from serveprune.compression.pruning.observation import observe_sizes
from serveprune.compression.pruning.repair import match_variance, reestimate_batch_norms, refit, solve
from serveprune.compression.pruning.statistics import Moments, collect_moments
from serveprune.compression.pruning.surgery import remove_units
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array

WIDTH = 12


def network(path: Path, *, residual: bool = False) -> Path:
    """x (n, 6) -> MatMul 12 -> bias -> Relu -> MatMul 6 -> bias (-> plus x); the last neuron copies the first."""
    rng = np.random.default_rng(0)
    up = rng.standard_normal((6, WIDTH)).astype(np.float32)
    bias = rng.standard_normal(WIDTH).astype(np.float32)
    up[:, -1], bias[-1] = up[:, 0], bias[0]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["hidden"], name="up"),
        helper.make_node("Add", ["hidden", "up.bias"], ["biased"], name="up/bias"),
        helper.make_node("Relu", ["biased"], ["active"], name="relu"),
        helper.make_node("MatMul", ["active", "down"], ["down.out"], name="down"),
        helper.make_node("Add", ["down.out", "down.bias"], ["branch" if residual else "y"], name="down/bias"),
    ]
    if residual:
        nodes.append(helper.make_node("Add", ["x", "branch"], ["y"], name="residual"))
    weights: dict[str, Array] = {
        "up": up,
        "up.bias": bias,
        "down": rng.standard_normal((WIDTH, 6)).astype(np.float32),
        "down.bias": rng.standard_normal(6).astype(np.float32),
    }
    return save(path, nodes, weights, inputs={"x": (TensorProto.FLOAT, ["n", 6])}, outputs={"y": ["n", 6]})


@pytest.fixture
def samples() -> Dataset:
    rows = np.random.default_rng(5).standard_normal((600, 6)).astype(np.float32)
    return Dataset(tuple({"x": row} for row in rows))


def test_moments_of_batches_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    rows, outputs = rng.standard_normal((90, 4)).astype(np.float32), rng.standard_normal((90, 3)).astype(np.float32)
    parts = Moments()
    for start in range(0, 90, 17):
        parts.add(rows[start : start + 17], outputs[start : start + 17])
    covariance, cross = parts.centred()
    exact, wanted = rows.astype(np.float64), outputs.astype(np.float64)
    np.testing.assert_allclose(covariance, np.cov(exact.T, bias=True) * 90, atol=1e-4)
    np.testing.assert_allclose(cross, (exact - exact.mean(0)).T @ (wanted - wanted.mean(0)), atol=1e-4)
    np.testing.assert_allclose(parts.output_variance(), wanted.var(axis=0) * 90, atol=1e-4)


def test_solve_finds_the_weights_that_made_the_outputs_when_there_are_many_rows() -> None:
    rng = np.random.default_rng(0)
    rows, weight = rng.standard_normal((5000, 8)).astype(np.float32), rng.standard_normal((8, 3))
    moments = Moments()
    moments.add(rows, (rows @ weight + 4).astype(np.float32))
    np.testing.assert_allclose(solve(moments, weight), weight, atol=1e-3)
    # A ridge that leans on the start is drawn to it, not to zero.
    assert np.abs(solve(moments, weight + 1) - weight).max() < 0.2


def test_match_variance_restores_what_the_fit_lost() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5000, 4)).astype(np.float32)
    noise = rng.standard_normal((5000, 2)).astype(np.float32)
    weight = rng.standard_normal((4, 2))
    moments = Moments()
    moments.add(rows, (rows @ weight + noise).astype(np.float32))
    scaled = match_variance(moments, weight)
    np.testing.assert_allclose((rows @ scaled).var(axis=0), (rows @ weight + noise).var(axis=0), rtol=1e-2)


@pytest.mark.parametrize("residual", [False, True])
def test_refit_loses_nothing_when_what_went_was_a_copy(tmp_path: Path, samples: Dataset, residual: bool) -> None:
    path = network(tmp_path / "net.onnx", residual=residual)
    dense, pruned = ir.load(path), ir.load(path)
    graph = DependencyGraph(dense, observe_sizes(dense, workspace=tmp_path, sample=samples.samples[0]))
    (group,) = graph.groups
    remove_units(pruned, graph, [int(group.units[-1])])
    backend, x = OnnxRuntimeBackend(), np.stack([sample["x"] for sample in samples.samples])
    (wanted,) = backend.load(path).run({"x": x})
    ir.save(pruned, tmp_path / "cut.onnx")
    (cut,) = backend.load(tmp_path / "cut.onnx").run({"x": x})
    maps = [consumer.map for consumer in consumers_of(group)]
    refit(
        pruned,
        [maps],
        dense=dense,
        kept={},
        steps=("least_squares",),
        samples=samples,
        workspace=tmp_path,
        threads=1,
    )
    ir.save(pruned, tmp_path / "fitted.onnx")
    (fitted,) = backend.load(tmp_path / "fitted.onnx").run({"x": x})
    assert np.square(fitted - wanted).mean() < 0.02 * np.square(cut - wanted).mean()


def test_collect_moments_are_those_of_what_the_map_reads_and_gives(tmp_path: Path, samples: Dataset) -> None:
    path = network(tmp_path / "net.onnx")
    dense = ir.load(path)
    graph = DependencyGraph(dense, observe_sizes(dense, workspace=tmp_path, sample=samples.samples[0]))
    (consumer,) = consumers_of(graph.groups[0])
    moments = collect_moments([consumer.map], model=dense, samples=samples, workspace=tmp_path, threads=1)
    found = moments[consumer.map.node]
    weight = {name: value.const_value.numpy() for name, value in dense.graph.initializers.items() if value.const_value}
    x = np.stack([sample["x"] for sample in samples.samples]).astype(np.float64)
    active = np.maximum(x @ weight["up"] + weight["up.bias"], 0)
    assert found.count == 600
    np.testing.assert_allclose(found.xx, active.T @ active, rtol=1e-4)
    np.testing.assert_allclose(found.xy, active.T @ (active @ weight["down"]), rtol=1e-3, atol=1e-2)


def _normalized(path: Path, *, weight: Array, mean: Array, variance: Array) -> ir.Model:
    """Return a Conv of 3 channels and the BatchNormalization behind it."""
    channels = len(weight)
    constants = {
        "w": weight,
        "scale": np.ones(channels, np.float32),
        "shift": np.zeros(channels, np.float32),
        "mean": mean.astype(np.float32),
        "variance": variance.astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["y"], name="norm"),
    ]
    graph = save(
        path,
        nodes,
        constants,
        inputs={"x": (TensorProto.FLOAT, ["n", 3, 5, 5])},
        outputs={"y": ["n", channels, 5, 5]},
    )
    return ir.load(graph)


def _constant(model: ir.Model, name: str) -> Array:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return np.asarray(value.numpy())


def test_batch_norm_statistics_follow_the_change_of_their_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    pictures = (rng.standard_normal((64, 3, 5, 5)) * 2 + 1).astype(np.float32)
    seen = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], pictures)
    mean, variance = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3))
    dense = _normalized(tmp_path / "dense.onnx", weight=weight, mean=mean, variance=variance)
    kept = np.array([0, 2])
    pruned = _normalized(tmp_path / "pruned.onnx", weight=3 * weight[kept], mean=mean[kept], variance=variance[kept])
    samples = Dataset(tuple({"x": picture} for picture in pictures))
    reestimate_batch_norms(pruned, dense=dense, kept={"y": kept}, samples=samples, workspace=tmp_path, threads=1)
    np.testing.assert_allclose(_constant(pruned, "mean"), 3 * mean[kept], rtol=1e-3)
    np.testing.assert_allclose(_constant(pruned, "variance"), 9 * variance[kept], rtol=1e-3)


def test_batch_norm_statistics_stay_when_nothing_changed_whatever_the_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    mean, variance = np.arange(4.0), np.arange(1.0, 5.0)
    dense, same = (_normalized(tmp_path / "net.onnx", weight=weight, mean=mean, variance=variance) for _ in range(2))
    samples = Dataset(tuple({"x": np.full((3, 5, 5), each, np.float32)} for each in range(8)))
    reestimate_batch_norms(same, dense=dense, kept={}, samples=samples, workspace=tmp_path, threads=1)
    np.testing.assert_allclose(_constant(same, "mean"), mean, atol=1e-6)
    np.testing.assert_allclose(_constant(same, "variance"), variance, rtol=1e-6)


def test_ridge_grows_when_rows_are_fewer_than_inputs() -> None:
    second = np.eye(100)
    assert damping(second, rows=10) > 5 * damping(second, rows=1000)
