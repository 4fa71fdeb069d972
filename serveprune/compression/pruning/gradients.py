"""What a loss feels of single units and single weights: gradients over the calibration samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from serveprune.compression.learning.batches import tensors
from serveprune.compression.pruning.answer_loss import AnswerLoss
from serveprune.compression.pruning.coupling.contraction import Contraction
from serveprune.compression.pruning.dependency_graph import DependencyGraph, PruningGroup
from serveprune.compression.pruning.linear import Matrix
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.task import Task, scored_outputs
from serveprune.graph.executor.graph_module import GraphModule
from serveprune.graph.node import key
from serveprune.oip.tensor import Array, TensorSpec

GradientMethod = Literal["taylor", "fisher"]
"""``taylor``: mean size of a gradient; ``fisher``: mean square of it."""

LossKind = Literal["answers", "labels"]

_GRADIENTS = 256
"""Gradients that are looked at: of so many samples, or several of each where there are fewer."""

_MOST_PER_SAMPLE = 8
_SCALED_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class GradientSource:
    """Of what gradients are taken.

    Attributes:
        samples: Inputs, and labels if the loss is to know them.
        task: What the answers mean.
        outputs: Of the graph.
        loss: ``answers``: distance from the dense model's own; ``labels``: cross-entropy.
        name: Of the model, for messages.
        seed: Of what is drawn.
        threads: Compute threads.
    """

    samples: Dataset
    task: Task
    outputs: Sequence[TensorSpec]
    loss: LossKind
    name: str
    seed: int
    threads: int

    @property
    def labels(self) -> Array | None:
        """The labels that the loss knows.

        Raises:
            InvalidArgument: There are none, but the loss has to know them.
        """
        if self.loss == "answers":
            return None
        classifies = self.task is Task.CLASSIFICATION
        if self.samples.labels is None or not classifies:
            missing = "the calibration set has none" if classifies else f"the answers mean {self.task}"
            raise InvalidArgument(
                f"{self.name}: expected a classifier and labels for loss: labels; {missing}; add a label to every "
                "calibration sample, or take loss: answers, which asks the dense model"
            )
        return self.samples.labels


def unit_scores(
    model: ir.Model,
    graph: DependencyGraph,
    groups: Sequence[PruningGroup],
    *,
    method: GradientMethod,
    source: GradientSource,
) -> dict[str, Matrix]:
    """Return what the loss feels of each unit, ``(width,)`` by the name of the group.

    A mask of ones multiplies the units wherever they are summed over. The gradient of one sample's loss at the mask
    says what the loss loses with the unit: ``taylor`` takes the mean of its size (Molchanov et al., 1906.10771),
    ``fisher`` that of its square (Kwon et al., 2204.09656).

    Args:
        model: The dense graph; not changed.
        graph: What goes together in it.
        groups: Of that graph.
        method: See above.
        source: The samples and the loss.

    Raises:
        InvalidArgument: The graph has an operator without gradients, or labels do not fit.
    """
    # Contractions of a value that other nodes read as it is: only here the mask may count.
    edges = {(key(edge.node), edge.slot): edge for group in groups for edge in group.contractions}
    masked, names = _with_masks(model, list(edges.values()))
    module = _module(masked, source)
    masks = {
        name: torch.ones(_mask_shape(edge, graph), dtype=_dtype(module)).requires_grad_()
        for name, edge in zip(names, edges.values(), strict=True)
    }
    widths = [group.width for group in groups]
    places = torch.from_numpy(_places(list(edges.values()), graph, groups))

    def measure(gradients: Sequence[Tensor]) -> list[Tensor]:
        found = torch.cat([gradient.reshape(-1) for gradient in gradients]).double()
        # The last place is of what belongs to no group.
        felt = torch.zeros(sum(widths) + 1, dtype=torch.float64).index_add_(0, places, found)[:-1]
        return [_size(felt, method)]

    (means,) = _means(module, list(masks.values()), measure, masks=masks, source=source)
    parts = np.split(means.numpy(), np.cumsum(widths)[:-1])
    return {group.name: part for group, part in zip(groups, parts, strict=True)}


def weight_scores(
    model: ir.Model, names: Sequence[str], *, method: GradientMethod, source: GradientSource
) -> dict[str, Array]:
    """Return what the loss feels of each single weight, in the shape of the constant, by its name.

    ``taylor``: ``|w| E|g|``; ``fisher``: ``w^2 E[g^2]``, twice what the loss grows by when the weight becomes zero
    (Optimal Brain Damage, LeCun et al., 1990, with the Fisher matrix for the Hessian).

    Args:
        model: The graph; not changed.
        names: Constants; those that no operator of the graph learns are left out.
        method: See above.
        source: The samples and the loss.

    Raises:
        InvalidArgument: The graph has an operator without gradients, or labels do not fit.
    """
    module = _module(model, source)
    weights = {name: module.weights[name].requires_grad_() for name in names if name in module.weights}
    if not weights:
        return {}

    def measure(gradients: Sequence[Tensor]) -> list[Tensor]:
        return [_size(gradient, method) for gradient in gradients]

    means = _means(module, list(weights.values()), measure, masks=None, source=source)
    return {
        name: (_size(weight.detach(), method) * mean).numpy()
        for (name, weight), mean in zip(weights.items(), means, strict=True)
    }


def _size(numbers: Tensor, method: GradientMethod) -> Tensor:
    return numbers.abs() if method == "taylor" else numbers.square()


def _module(model: ir.Model, source: GradientSource) -> GraphModule:
    module = GraphModule(model, name=source.name).eval()
    module.requires_grad_(False)
    # Half precision has no kernels for many gradients on CPU, and too little range for their squares.
    return module.float() if _dtype(module) in (torch.float16, torch.bfloat16) else module


def _dtype(module: GraphModule) -> torch.dtype:
    return next((weight.dtype for weight in module.weights.values()), torch.float32)


def _means(
    module: GraphModule,
    wanted: list[Tensor],
    measure: Callable[[Sequence[Tensor]], list[Tensor]],
    *,
    masks: Mapping[str, Tensor] | None,
    source: GradientSource,
) -> list[Tensor]:
    """Return the mean, over samples and draws, of what is measured of the gradients of one sample's loss.

    Samples go alone, for not every graph has them on axis 0, and several at once, each in a thread of its own: one
    sample gives several threads too little to do.
    """
    chosen = np.linspace(0, len(source.samples) - 1, min(len(source.samples), _GRADIENTS)).round().astype(int).tolist()
    draws = 1 if source.labels is not None else min(-(-_GRADIENTS // len(chosen)), _MOST_PER_SAMPLE)
    with _torch_threads(1), ThreadPoolExecutor(source.threads) as pool:
        loss = _loss(module, source, samples=source.samples.select(chosen[:_SCALED_SAMPLES]))

        def felt(index: int) -> list[Tensor]:
            answers = module(tensors(source.samples.collate([index])), scales=masks)
            total: list[Tensor] = []
            for scalar in loss.scalars(answers, index, draws=draws):
                if not scalar.requires_grad:
                    raise InvalidArgument(
                        f"{source.name}: no answer depends on what may be pruned by a path that has gradients; take "
                        "importance: reconstruction"
                    )
                found = torch.autograd.grad(
                    scalar, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                _add(total, measure(found))
            return total

        sums: list[Tensor] = []
        # A few at a time: what is measured of all samples together may take more memory than there is.
        for start in range(0, len(chosen), source.threads):
            for total in pool.map(felt, chosen[start : start + source.threads]):
                _add(sums, total)
    return [found / (len(chosen) * draws) for found in sums]


def _add(sums: list[Tensor], parts: list[Tensor]) -> None:
    if not sums:
        sums += parts
        return
    for total, part in zip(sums, parts, strict=True):
        total += part


def _loss(module: GraphModule, source: GradientSource, *, samples: Dataset) -> AnswerLoss:
    names = [spec.name for spec in scored_outputs(source.task, source.outputs) if spec.datatype.dtype.kind == "f"]
    if not names:
        raise InvalidArgument(f"{source.name}: gradients need an output of floats; take importance: reconstruction")
    scales: dict[str, float] = {}
    if len(names) > 1:
        with torch.no_grad():
            seen = [module(tensors(samples.collate([index]))) for index in range(len(samples))]
        for name in names:
            squares = [float(answers[name].double().square().mean()) for answers in seen]
            scales[name] = float(np.sqrt(np.mean(squares))) or 1.0
    return AnswerLoss(source.task, names, labels=source.labels, scales=scales, seed=source.seed)


def _with_masks(model: ir.Model, edges: Sequence[Contraction]) -> tuple[ir.Model, list[str]]:
    """Return a copy in which each contraction reads a value of its own, and the names of these values."""
    copy = model.clone()
    nodes = {key(node): node for node in copy.graph}
    names = []
    for count, edge in enumerate(edges):
        node, name = nodes[key(edge.node)], f"serveprune.mask.{count}"
        carrier = ir.node("Identity", [node.inputs[edge.slot]])
        carrier.outputs[0].name = name
        copy.graph.insert_before(node, carrier)
        node.replace_input_with(edge.slot, carrier.outputs[0])
        names.append(name)
    return copy, names


def _mask_shape(edge: Contraction, graph: DependencyGraph) -> tuple[int, ...]:
    rank = len(graph.axes(edge.value.name or ""))
    return tuple(len(edge.ids) if axis == edge.axis % rank else 1 for axis in range(rank))


def _places(
    edges: Sequence[Contraction], graph: DependencyGraph, groups: Sequence[PruningGroup]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the place of each mask's position among the units of all groups, one after the other."""
    units = np.concatenate([graph.roots(group.units) for group in groups])
    order = np.argsort(units)
    ids = graph.roots(np.concatenate([edge.ids for edge in edges]))
    found = order[np.searchsorted(units, ids, sorter=order).clip(max=len(units) - 1)]
    return np.where(units[found] == ids, found, len(units))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
