"""The pass protocol, the table of passes, and the runner that holds every pass to its contract."""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

import onnx

from serveprune.artifacts.durability import require_room
from serveprune.config.passes import PassOptions
from serveprune.errors import BuildFailed, Internal
from serveprune.evaluation.dataset import Dataset
from serveprune.evaluation.task import Task


def _unheard(words: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class PassContext:
    """What a pass may use besides the graph.

    Attributes:
        options: The pass's own section of the profile.
        calibration: Unlabelled samples to learn from; None when the model declares none.
        cpu: Architecture and features of this machine, as `artifacts.environment` names them.
        threads: Compute threads the pass may use.
        seed: Of every random choice.
        workspace: Empty folder for intermediate files, removed after the pass.
        progress: Takes the done fraction of this pass, from 0 to 1.
        serving_threads: Threads of one batch in serving, with which a pass measures latency.
        cache: Folder for what other tiers and later builds of this store can use again; None keeps nothing.
        dense: The imported graph, before any pass of the profile; None where there is no profile around the pass.
        model_name: Of the model, for messages.
        task: What the model's answers mean.
        note: Takes words to show beside the fraction from now on, such as a loss.
    """

    options: PassOptions
    calibration: Dataset | None
    cpu: str
    threads: int
    seed: int
    workspace: Path
    progress: Callable[[float], None]
    serving_threads: int = 1
    cache: Path | None = None
    dense: Path | None = None
    model_name: str = "model"
    task: Task = Task.GENERIC
    note: Callable[[str], None] = _unheard


@dataclass(frozen=True, slots=True)
class PassReport:
    """What a pass did.

    Attributes:
        findings: JSON-ready values for people and for the manifest.
        files: Names of what the pass left beside the graph, which becomes part of the artifact.
    """

    findings: Mapping[str, Any]
    files: tuple[str, ...] = ()


class Pass(Protocol):
    """One compression step: a graph in, a graph out."""

    def apply(self, graph: Path, *, output: Path, context: PassContext) -> PassReport:
        """Read the ONNX file ``graph`` and write the compressed one to ``output``.

        External data, if any, goes beside the file. The inputs and outputs of the graph keep their names,
        types and order.

        Raises:
            InvalidArgument: The options, the graph or the calibration set do not allow this pass.
            BuildFailed: The pass could not do its work.
        """
        ...


_TABLE: Mapping[str, str] = MappingProxyType(
    {
        "distill": "serveprune.compression.distillation.distill:DistillPass",
        "lottery": "serveprune.compression.lottery.lottery:LotteryPass",
        "prune": "serveprune.compression.pruning.prune:PrunePass",
        "quantize": "serveprune.compression.quantization.quantize:QuantizePass",
    }
)


def load_pass(name: str) -> Pass:
    """Return the pass of this name, importing what it needs only now."""
    if name not in _TABLE:
        raise Internal(f"no pass is named {name}; known: {', '.join(_TABLE)}")
    module, _, attribute = _TABLE[name].partition(":")
    return cast(Pass, getattr(importlib.import_module(module), attribute)())


def apply_pass(name: str, graph: Path, *, output: Path, context: PassContext) -> PassReport:
    """Run one pass and check that it left a graph that is not the one it got.

    Raises:
        BuildFailed: The pass changed nothing.
        OSError: The disk is full, whatever the pass took that for.
    """
    step = load_pass(name)
    try:
        report = step.apply(graph, output=output, context=context)
        unchanged = graph_digest(output) == graph_digest(graph)
    except Exception:
        require_room(context.workspace)
        raise
    if unchanged:
        raise BuildFailed(
            f"{name}: the pass changed nothing in this graph; remove it from the profile or change its options"
        )
    return report


def graph_digest(path: Path) -> str:
    """Return the SHA-256 of what a graph computes: its nodes and weights, not its metadata or shapes."""
    model = onnx.load(path)
    digest = hashlib.sha256()
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()
