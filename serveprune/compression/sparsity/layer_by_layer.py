"""Reconstruction from layer to layer, each seeing what the sparse ones before it really give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.compression.pruning.linear import LinearMap, Matrix
from serveprune.compression.pruning.repair import wanted_output
from serveprune.compression.pruning.statistics import Moments, MomentSum, add_rows, collect_moments, unpadded_batches
from serveprune.compression.pruning.walk import Halt, Walk
from serveprune.compression.sparsity.prunable_weights import PrunableWeight
from serveprune.compression.sparsity.reconstruction import inverse_factor, reconstruct, saliencies
from serveprune.compression.sparsity.shares import Share
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.node import constant
from serveprune.oip.tensor import Array

FIT_RIDGE_RATIO = 0.1
"""Of the mean diagonal: how much the fit to dense leans on the weights it starts from."""

_MOST_MULTIPLICATIONS = 5e10
"""Of solving for a layer's outputs, some seconds on one core; beyond it few weights are zero and little is lost."""


@dataclass(frozen=True, slots=True)
class _Layer:
    weight: PrunableWeight
    map: LinearMap


def reconstruct_layers(
    model: ir.Model,
    weights: Sequence[PrunableWeight],
    shares: Mapping[str, Share],
    *,
    dense: ir.Model,
    samples: Dataset,
    workspace: Path,
    threads: int,
    progress: Callable[[float], None],
) -> None:
    """Set weights to zero in the order in which they run, in place.

    Before a layer gets its zeros it is fitted to what the dense graph gives there, for its inputs are no longer
    those it was trained with.

    Args:
        model: The graph, perhaps sparse already.
        weights: Those whose nodes are plain products.
        shares: Zeros by weight name.
        dense: The graph as it came, with the same names.
        samples: Unlabelled inputs.
        workspace: For pieces of the graph.
        threads: Compute threads.
        progress: Takes the done fraction.
    """
    nodes = {node.outputs[0].name or "": node for node in model.graph}
    place = {name: index for index, name in enumerate(nodes)}
    layers = [_Layer(weight, weight.map) for weight in weights if weight.map is not None]
    stages: list[list[_Layer]] = []
    for layer in sorted(layers, key=lambda layer: place[layer.map.node]):
        if stages and stages[-1][0].map.data == layer.map.data:
            stages[-1].append(layer)
        else:
            stages.append([layer])
    ours, theirs = [], []
    for stage in stages:
        streams = [layer.map.stream for layer in stage if layer.map.stream]
        read = dict.fromkeys([stage[0].map.data, *(stream.carried for stream in streams)])
        ours.append(Halt(tuple(read), before=stage[0].map.node))
        given = dict.fromkeys(layer.map.stream.total if layer.map.stream else layer.map.node for layer in stage)
        theirs.append(Halt(tuple(given)))
    sparse, whole = (
        Walk(each, halts, batches=unpadded_batches(samples), workspace=workspace, threads=threads)
        for each, halts in ((model, ours), (dense, theirs))
    )
    for index, stage in enumerate(stages):
        sums = {layer.map.node: MomentSum() for layer in stage}
        for batch, (seen, given_) in enumerate(zip(sparse.advance(), whole.advance(), strict=True)):
            for layer in stage:
                output = wanted_output(layer.map, seen, given_, kept=None)
                data = seen[layer.map.data]
                add_rows(sums[layer.map.node], layer.map, nodes[layer.map.node], data=data, output=output, seed=batch)
        for layer in stage:
            _sparsify(model, layer, sums[layer.map.node].moments(), shares[layer.weight.name])
        progress((index + 1) / len(stages))


def _sparsify(model: ir.Model, layer: _Layer, moments: Moments, share: Share) -> None:
    value = model.graph.initializers[layer.weight.name]
    array = constant(value)
    assert array is not None
    columns = layer.weight.columns(array)
    second = moments.xx[np.ix_(columns, columns)]
    cross = moments.xy[columns].T
    matrix = layer.weight.matrix(array)
    zero = matrix == 0
    fitted = fit(second, cross, matrix)
    fitted[zero] = 0.0
    changed = reconstruct(fitted, inverse_factor(second), share=share, silent=np.diag(second) == 0)
    changed = fit_within(second, cross, changed)
    value.const_value = ir.tensor(layer.weight.array(changed, like=array), name=value.name)


def fit(second_moments: Matrix, cross_moments: Matrix, start: Array) -> Matrix:
    """Return the ``(outputs, inputs)`` that give the outputs best, leaning on ``start``.

    Args:
        second_moments: ``(inputs, inputs)``.
        cross_moments: ``(outputs, inputs)``.
        start: ``(outputs, inputs)``.
    """
    damped = second_moments.copy()
    ridge = FIT_RIDGE_RATIO * np.trace(damped) / len(damped) + 1e-12
    damped[np.diag_indices_from(damped)] += ridge
    solution: Matrix = np.linalg.solve(damped, (cross_moments + ridge * start).T).T
    return solution


def fit_within(
    second_moments: Matrix, cross_moments: Matrix, start: Matrix, *, ridge_ratio: float = FIT_RIDGE_RATIO
) -> Matrix:
    """Return the best weights with the zeros of ``start``, leaning on it; ``start`` itself where that takes too long.

    Column by column what is fixed cannot make up for what goes later. Once it is known what goes, each output is a
    small least squares problem of its own.

    Args:
        second_moments: ``(inputs, inputs)``.
        cross_moments: ``(outputs, inputs)``.
        start: ``(outputs, inputs)``.
        ridge_ratio: Of the mean diagonal.
    """
    kept = start != 0
    if float(np.power(kept.sum(axis=1), 3.0).sum()) > _MOST_MULTIPLICATIONS:
        return start
    damped = second_moments.copy()
    ridge = ridge_ratio * np.trace(damped) / len(damped) + 1e-12
    damped[np.diag_indices_from(damped)] += ridge
    wanted = cross_moments + ridge * start
    fitted = np.zeros_like(start)
    for row, left in enumerate(kept):
        fitted[row, left] = np.linalg.solve(damped[np.ix_(left, left)], wanted[row, left])
    return fitted


def saliency_scores(
    model: ir.Model, weights: Sequence[PrunableWeight], *, samples: Dataset, workspace: Path, threads: int
) -> dict[str, Array]:
    """Return what each weight's zero costs after compensation, as a share of its layer's energy, by weight name."""
    layers = [_Layer(weight, weight.map) for weight in weights if weight.map is not None]
    moments = collect_moments(
        [layer.map for layer in layers], model=model, samples=samples, workspace=workspace, threads=threads
    )
    found = {}
    for layer in layers:
        array = constant(model.graph.initializers[layer.weight.name])
        assert array is not None
        columns = layer.weight.columns(array)
        seen = moments[layer.map.node]
        costs = saliencies(layer.weight.matrix(array), inverse_factor(seen.xx[np.ix_(columns, columns)]))
        found[layer.weight.name] = costs / max(float(seen.yy.sum()), np.finfo(np.float64).tiny)
    return found
