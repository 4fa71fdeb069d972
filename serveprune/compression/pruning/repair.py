"""Making up for what was removed, in closed form from unlabelled samples."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from serveprune.compression.pruning.importance import damping
from serveprune.compression.pruning.linear import LinearMap, Matrix
from serveprune.compression.pruning.statistics import Moments, MomentSum, add_rows, unpadded_batches
from serveprune.compression.pruning.walk import Halt, Walk
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.node import attribute
from serveprune.oip.tensor import Array

_MOST_SCALING = 2.0
_LEAST_VARIANCE = 1e-6
_BATCH_NORM_SAMPLES = 256


def refit(
    model: ir.Model,
    stages: Sequence[Sequence[LinearMap]],
    *,
    dense: ir.Model,
    kept: Mapping[str, NDArray[np.int64]],
    steps: Collection[str],
    samples: Dataset,
    workspace: Path,
    threads: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Fit weights and biases of these maps, one after the other, to what the dense graph gives there, in place.

    Each map sees the inputs that the layers before it, already pruned and fitted, really give it. The solution is
    ridge least squares that leans on the weights it starts from, not on zero.

    Args:
        model: The pruned graph.
        stages: Maps in the order they run in; those of one stage read the same value.
        dense: The graph it was made from, with the same names.
        kept: Per map the outputs that are still there; all where it has no entry.
        steps: ``least_squares``, ``variance``, or both.
        samples: Unlabelled inputs.
        workspace: For instrumented graphs.
        threads: Compute threads.
        progress: Takes the done fraction.
    """
    ours, theirs = [], []
    for maps in stages:
        streams = [item.stream for item in maps if item.stream]
        read = dict.fromkeys([*(item.data for item in maps), *(stream.carried for stream in streams)])
        ours.append(Halt(tuple(read), before=maps[0].node))
        theirs.append(Halt(tuple(dict.fromkeys(item.stream.total if item.stream else item.node for item in maps))))
    pruned, wanted = (
        Walk(each, halts, batches=unpadded_batches(samples), workspace=workspace, threads=threads)
        for each, halts in ((model, ours), (dense, theirs))
    )
    for index, maps in enumerate(stages):
        nodes = {node.outputs[0].name or "": node for node in model.graph}
        sums = {item.node: MomentSum() for item in maps}
        for batch, (seen, given) in enumerate(zip(pruned.advance(), wanted.advance(), strict=True)):
            for item in maps:
                output = wanted_output(item, seen, given, kept=kept.get(item.node))
                add_rows(sums[item.node], item, nodes[item.node], data=seen[item.data], output=output, seed=batch)
        for item in maps:
            _fit(model.graph, nodes[item.node], item, sums[item.node].moments(), steps=steps)
        progress((index + 1) / len(stages))


def wanted_output(
    item: LinearMap, seen: Mapping[str, Array], given: Mapping[str, Array], *, kept: NDArray[np.int64] | None
) -> Array:
    """Return what a map should give, in its own layout: what dense gave, or what its stream lacks to be dense's."""
    output = given[item.stream.total if item.stream else item.node]
    if kept is not None:
        output = np.take(output, kept, axis=1 if item.operator == "Conv" else -1)
    if item.stream is None:
        return output
    # The errors of earlier layers are in what the stream carries, and are made up for too.
    output = output - seen[item.stream.carried]
    if item.stream.offset is None:
        return output
    return output - (item.stream.offset if kept is None else item.stream.offset[kept])


def _fit(container: ir.Graph, node: ir.Node, item: LinearMap, moments: Moments, *, steps: Collection[str]) -> None:
    value = container.initializers[item.weight]
    assert value.const_value is not None
    weight = np.asarray(value.const_value.numpy())
    matrix = item.matrix(weight)
    if "least_squares" in steps:
        matrix = solve(moments, matrix)
    if "variance" in steps:
        matrix = match_variance(moments, matrix)
    bias = (moments.y - moments.x @ matrix) / moments.count
    value.const_value = ir.tensor(item.weight_like(matrix, weight), name=value.name)
    _set_bias(container, node, bias.astype(weight.dtype))


def reestimate_batch_norms(
    model: ir.Model,
    *,
    dense: ir.Model,
    kept: Mapping[str, NDArray[np.int64]],
    samples: Dataset,
    workspace: Path,
    threads: int,
) -> None:
    """Let the statistics of every BatchNormalization follow what pruning did to its inputs, in order, in place.

    Means move by as much, and variances by the same factor, as they do on the samples between the dense and the pruned
    graph. The samples' own statistics are not taken over: a few unlabelled samples are not the data that the network
    was trained on.

    Args:
        model: The pruned graph.
        dense: The graph it was made from, with the same names.
        kept: Per BatchNormalization the channels that are still there; all where it has no entry.
        samples: Unlabelled inputs.
        workspace: For pieces of the graphs.
        threads: Compute threads.
    """
    norms = _batch_norms(model)
    originals = _batch_norms(dense)
    few = samples.head(_BATCH_NORM_SAMPLES)
    ours, theirs = (
        Walk(
            each,
            [Halt((_given(nodes[name], 0).name or "",), before=name) for name in norms],
            batches=unpadded_batches(few),
            workspace=workspace,
            threads=threads,
        )
        for each, nodes in ((model, norms), (dense, originals))
    )
    for name, node in norms.items():
        mean, variance = _channel_statistics(ours.advance())
        before = _channel_statistics(theirs.advance())
        dense_mean, dense_variance = (each[kept[name]] if name in kept else each for each in before)
        least = float(attribute(node, "epsilon", 1e-5))
        _adjust(_given(node, 3), offset=mean - dense_mean)
        _adjust(_given(node, 4), factor=(variance + least) / (dense_variance + least))


def _batch_norms(model: ir.Model) -> dict[str, ir.Node]:
    return {node.outputs[0].name or "": node for node in model.graph if node.op_type == "BatchNormalization"}


def _channel_statistics(batches: Iterable[Mapping[str, Array]]) -> tuple[Matrix, Matrix]:
    """Return mean and variance of each channel over all batches, ``(channels,)``."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for (array,) in (seen.values() for seen in batches):
        axes = (0, *range(2, array.ndim))
        count += array.size // array.shape[1]
        total = total + array.sum(axis=axes, dtype=np.float64)
        squares = squares + np.square(array, dtype=np.float64).sum(axis=axes)
    mean = total / count
    return mean, np.maximum(squares / count - np.square(mean), 0.0)


def _adjust(value: ir.Value, *, factor: Matrix | float = 1.0, offset: Matrix | float = 0.0) -> None:
    assert value.const_value is not None
    now = value.const_value.numpy()
    value.const_value = ir.tensor((now * factor + offset).astype(now.dtype), name=value.name)


def _given(node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot]
    assert value is not None
    return value


def solve(moments: Moments, start: Matrix) -> Matrix:
    """Return the weights ``(inputs, outputs)`` that give the outputs best, leaning on ``start``."""
    covariance, cross = moments.centred()
    ridge = damping(covariance, rows=moments.count)
    covariance[np.diag_indices_from(covariance)] += ridge
    return np.asarray(np.linalg.solve(covariance, cross + ridge * start), np.float64)


def match_variance(moments: Moments, matrix: Matrix) -> Matrix:
    """Scale each output so that it varies as much as the dense one did, by at most a factor of 2.

    What could not be made up for is missing from the variance, which later layers were trained to expect.
    """
    covariance, _ = moments.centred()
    fitted = np.einsum("ij,ij->j", matrix, covariance @ matrix)
    wanted = moments.output_variance()
    scale = np.sqrt(wanted / np.maximum(fitted, _LEAST_VARIANCE * np.maximum(wanted, 1e-30)))
    scaled: Matrix = matrix * np.clip(scale, 1 / _MOST_SCALING, _MOST_SCALING)
    return scaled


def _set_bias(container: ir.Graph, node: ir.Node, bias: Array) -> None:
    """Let a node's output be offset as the fit says, in the bias it has, or in a new one."""
    output = node.outputs[0]
    if node.op_type in ("Conv", "Gemm"):
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, _constant(container, f"{output.name}_bias", bias))
        return
    users = list(output.uses())
    if len(users) == 1 and users[0][0].op_type == "Add":
        added, slot = users[0]
        present = added.inputs[1 - slot]
        if present is not None and present.const_value is not None and len(present.const_value.shape) == 1:
            total = np.asarray(present.const_value.numpy()) + bias
            added.replace_input_with(1 - slot, _constant(container, f"{output.name}_bias", total))
            return
    added = ir.node("Add", [output, _constant(container, f"{output.name}_bias", bias)])
    added.outputs[0].name = f"{output.name}_biased"
    for user, slot in users:
        user.replace_input_with(slot, added.outputs[0])
    container.insert_after(node, added)


def _constant(container: ir.Graph, name: str, array: Array) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape = ir.Shape(array.shape)
    container.initializers[name] = value
    return value
