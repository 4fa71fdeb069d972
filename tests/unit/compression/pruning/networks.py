"""Tiny ONNX graphs of every kind of coupling, and one trial that prunes any of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.equivalence import check_surgery
from serveprune.compression.pruning.observation import observe_sizes, sized_feeds
from serveprune.compression.pruning.preparation import prepare
from serveprune.graph.onnx_source import probe_inputs
from serveprune.oip.tensor import Array


class Network:
    """An ONNX graph being written, node by node; every method returns the name of what it makes."""

    def __init__(self, *, opset: int = 18, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, Array] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, *shape: int | str, name: str = "x", integers: bool = False) -> str:
        kind = TensorProto.INT64 if integers else TensorProto.FLOAT
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def weight(self, *shape: int, name: str | None = None) -> str:
        scale = 1 / max(math.prod(shape[1:]), 1) ** 0.5 if len(shape) > 1 else 0.5
        return self.constant(self._rng.normal(0.1, scale, shape).astype(np.float32), name=name)

    def constant(self, array: Any, *, name: str | None = None) -> str:
        name = name or f"constant_{len(self._weights)}"
        self._weights[name] = np.asarray(array)
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def node(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        self._count += 1
        names = [f"{operator.lower()}_{self._count}" + (f"_{index}" if index else "") for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def linear(self, x: str, inputs: int, outputs: int, *, name: str, bias: bool = True) -> str:
        made: str = self.node("MatMul", x, self.weight(inputs, outputs, name=name))
        return self.node("Add", made, self.weight(outputs, name=f"{name}.bias")) if bias else made

    def gemm(self, x: str, inputs: int, outputs: int, *, name: str) -> str:
        made: str = self.node("Gemm", x, self.weight(outputs, inputs, name=name), self.weight(outputs), transB=1)
        return made

    def conv(self, x: str, inputs: int, outputs: int, *, name: str, kernel: int = 3, group: int = 1) -> str:
        weights = (
            self.weight(outputs, inputs // group, kernel, kernel, name=name),
            self.weight(outputs, name=f"{name}.bias"),
        )
        made: str = self.node("Conv", x, *weights, group=group, pads=[kernel // 2] * 4)
        return made

    def pooled_head(self, x: str, channels: int, *, name: str = "head") -> str:
        """Average over space and classify: no channel of ``x`` is pinned by it."""
        pooled = self.node("Flatten", self.node("GlobalAveragePool", x))
        return self.gemm(pooled, channels, 3, name=name)

    def save(self, path: Path, *outputs: str) -> Path:
        graph = helper.make_graph(
            self._nodes,
            "network",
            self._inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self._weights.items()],
        )
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8 if self._opset < 21 else 10), path)
        return path


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a network of which some units of every group were removed."""

    graph: DependencyGraph
    difference: float
    before: Mapping[str, tuple[int, ...]]
    after: Mapping[str, tuple[int, ...]]
    small: ir.Model

    @property
    def groups(self) -> set[tuple[int, frozenset[tuple[str, int]]]]:
        """Width and named weight axes of every group; unnamed constants (biases) are left out."""
        return {
            (group.width, frozenset((piece.name, piece.axis) for piece in group.slices if _is_named(piece.name)))
            for group in self.graph.groups
        }

    def pinned_because(self, name: str, axis: int) -> str | None:
        return next((pin.reason for pin in self.graph.pinned if (pin.name, pin.axis) == (name, axis)), None)


def _is_named(name: str) -> bool:
    return not name.startswith("constant_") and ".bias" not in name


def read(path: Path, *, workspace: Path, attention: Literal["heads", "head_dims"] = "heads") -> DependencyGraph:
    model = prepare(path, output=workspace / "prepared.onnx")
    return DependencyGraph(model, observe_sizes(model, workspace=workspace), attention=attention)


def prune(
    path: Path,
    *,
    workspace: Path,
    attention: Literal["heads", "head_dims"] = "heads",
    share: float = 0.4,
    seed: int = 0,
    blocks: Sequence[str] = (),
) -> Trial:
    """Remove a random share of the units of every group, and check this against masking them."""
    graph = read(path, workspace=workspace, attention=attention)
    rng = np.random.default_rng(seed)
    removed: list[int] = []
    for group in graph.groups:
        count = min(max(1, round(group.width * share)), group.width - 1)
        removed += rng.permutation(group.units)[:count].tolist()
    prepared = workspace / "prepared.onnx"
    feeds = next(iter(sized_feeds(probe_inputs(onnx.load(prepared), label=path.name))))
    difference = check_surgery(prepared, graph, removed, feeds, workspace=workspace, blocks=blocks)
    small = ir.load(workspace / "small" / "model.onnx")
    return Trial(graph, difference, _shapes(ir.load(prepared)), _shapes(small), small)


def _shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.const_value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
