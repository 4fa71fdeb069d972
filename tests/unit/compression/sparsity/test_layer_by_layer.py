import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from unit.compression.pruning.networks import Network

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.preparation import prepare
from serveprune.compression.sparsity.layer_by_layer import fit, reconstruct_layers, saliency_scores
from serveprune.compression.sparsity.prunable_weights import PrunableWeight, select_weights
from serveprune.compression.sparsity.shares import Share
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.node import constant
from serveprune.graph.onnx_file import write_graph
from serveprune.oip.tensor import Array


def three_layers(folder: Path) -> tuple[Path, Dataset, Array]:
    n = Network()
    x = n.node("Relu", n.linear(n.input("batch", 24), 24, 32, name="first"))
    x = n.node("Relu", n.linear(x, 32, 32, name="second"))
    path = n.save(folder / "net.onnx", n.linear(x, 32, 6, name="third"))
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(600, 8)) @ rng.normal(size=(8, 24)) + 0.1 * rng.normal(size=(600, 24))).astype(np.float32)
    return path, Dataset(tuple({"x": row} for row in rows[:400])), rows[400:]


def answers(model: ir.Model, path: Path, rows: Array) -> Array:
    write_graph(model, path)
    return OnnxRuntimeBackend().load(path).run({"x": rows})[0]


def prepared(path: Path) -> tuple[ir.Model, ir.Model, tuple[PrunableWeight, ...]]:
    dense = prepare(path, output=path.with_name("prepared.onnx"))
    return dense, ir.load(path.with_name("prepared.onnx")), select_weights(dense, embeddings=True, ignore=()).weights


def test_layers_that_see_what_the_sparse_ones_give_lose_less_than_masks(tmp_path: Path) -> None:
    path, samples, held_out = three_layers(tmp_path)
    dense, model, weights = prepared(path)
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    shares = {weight.name: Share(round(0.6 * sizes[weight.name])) for weight in weights}
    seen: list[float] = []
    reconstruct_layers(
        model, weights, shares, dense=dense, samples=samples, workspace=tmp_path, threads=1, progress=seen.append
    )
    assert seen == [1 / 3, 2 / 3, 1.0]
    masked = ir.load(tmp_path / "prepared.onnx")
    for weight in weights:
        array = constant(masked.graph.initializers[weight.name])
        made = constant(model.graph.initializers[weight.name])
        assert array is not None
        assert made is not None
        assert (made == 0).sum() == shares[weight.name].zeros
        kept = shares[weight.name].mask(np.abs(weight.matrix(array)))
        pruned = weight.array(np.where(kept, weight.matrix(array), 0), like=array)
        masked.graph.initializers[weight.name].const_value = ir.tensor(pruned, name=weight.name)
    wanted = answers(dense, tmp_path / "dense.onnx", held_out)
    ours = answers(model, tmp_path / "ours.onnx", held_out)
    plain = answers(masked, tmp_path / "masked.onnx", held_out)
    assert np.square(ours - wanted).sum() < 0.1 * np.square(plain - wanted).sum()


def test_fit_gives_the_weights_that_the_outputs_came_from() -> None:
    rng = np.random.default_rng(0)
    rows, weights = rng.normal(size=(500, 10)), rng.normal(size=(3, 10))
    start = weights + rng.normal(size=weights.shape)
    found = fit(rows.T @ rows, (rows @ weights.T).T @ rows, start)
    # It leans on where it starts by a tenth of the inputs' variance.
    assert np.abs(found - weights).max() < 0.2 * np.abs(start - weights).max()


def test_saliencies_are_shares_of_each_layers_own_energy(tmp_path: Path) -> None:
    path, samples, _ = three_layers(tmp_path)
    _, model, weights = prepared(path)
    before = saliency_scores(model, weights, samples=samples, workspace=tmp_path, threads=1)
    value = model.graph.initializers["third"]
    array = constant(value)
    assert array is not None
    value.const_value = ir.tensor(array * 100, name="third")
    after = saliency_scores(model, weights, samples=samples, workspace=tmp_path, threads=1)
    np.testing.assert_allclose(after["third"], before["third"], rtol=1e-4)
