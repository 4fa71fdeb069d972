"""What is known of a model's groups before any target: who goes first, and what it does to the answers."""

import gc
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.artifacts.digest import sha256_json
from serveprune.compression.pruning.consumers import consumers_of
from serveprune.compression.pruning.dependency_graph import DependencyGraph, PruningGroup
from serveprune.compression.pruning.importance import Importance, RemovalOrder
from serveprune.compression.pruning.linear import Matrix
from serveprune.compression.pruning.sensitivity import SensitivityProbe
from serveprune.compression.pruning.statistics import collect_moments
from serveprune.compression.pruning.surgery import masked_blocks
from serveprune.evaluation.dataset import Dataset
from serveprune.graph.onnx_file import write_graph
from serveprune.oip.tensor import Array

_log = logging.getLogger(__name__)

_SENSITIVITY_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class GroupStudy:
    """What one group can lose.

    Attributes:
        order: Units from the first to go to the last.
        answer_errors: ``(width + 1,)`` share of the answers' energy that is lost after so many removals.
    """

    order: RemovalOrder
    answer_errors: Matrix


@dataclass(frozen=True, slots=True)
class Study:
    """What a model can lose.

    Attributes:
        groups: One entry per group, in the order they were given.
        block_errors: Residual block -> share of the answers' energy that is lost without it.
        rows_per_input: Rows that the samples gave per input of the consumer that had the fewest.
    """

    groups: tuple[GroupStudy, ...]
    block_errors: Mapping[str, float]
    rows_per_input: float


class StudyCache:
    """Studies on disk, so that every tier of a model shares one calibration."""

    def __init__(self, folder: Path | None, *, recipe: Mapping[str, object]) -> None:
        """Name the entry.

        Args:
            folder: Where entries are; ``None`` keeps none.
            recipe: Everything the study depends on.
        """
        self._path = None if folder is None else folder / f"{sha256_json(dict(recipe))}.npz"

    def read(self) -> Study | None:
        """Return the study if it was kept; one that cannot be read is made anew."""
        if self._path is None or not self._path.exists():
            return None
        try:
            # From memory: numpy leaves a file open whose content it cannot make out.
            with np.load(io.BytesIO(self._path.read_bytes()), allow_pickle=False) as arrays:
                return _study_of(arrays)
        except Exception as error:  # zipfile and numpy raise whatever their parsers stumble over
            _log.warning("the study in %s cannot be read and is made anew: %s", self._path, error)
            return None

    def write(self, study: Study) -> None:
        """Keep a study, whole or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Array] = {
            "groups": np.array(len(study.groups)),
            "blocks": np.array(list(study.block_errors), dtype=np.str_),
            "rows_per_input": np.array(study.rows_per_input),
            "block_errors": np.array(list(study.block_errors.values()), dtype=np.float64),
        }
        for index, group in enumerate(study.groups):
            arrays[f"{index}.units"] = group.order.units
            arrays[f"{index}.errors"] = group.order.errors
            arrays[f"{index}.answer_errors"] = group.answer_errors
        # Another build may write the same entry; each is whole when it gets its name.
        draft = self._path.with_suffix(f".{os.getpid()}.draft.npz")
        np.savez(draft, **arrays)  # type: ignore[arg-type]  # numpy's own name for the first argument is `file`
        draft.replace(self._path)


def _study_of(arrays: Mapping[str, Array]) -> Study:
    groups = tuple(
        GroupStudy(RemovalOrder(arrays[f"{index}.units"], arrays[f"{index}.errors"]), arrays[f"{index}.answer_errors"])
        for index in range(int(arrays["groups"]))
    )
    blocks = dict(zip(arrays["blocks"].tolist(), arrays["block_errors"].tolist(), strict=True))
    return Study(groups, blocks, float(arrays["rows_per_input"]))


def study_model(
    prepared: Path,
    model: ir.Model,
    graph: DependencyGraph,
    groups: Sequence[PruningGroup],
    blocks: Sequence[str],
    importance: Importance,
    *,
    samples: Dataset,
    workspace: Path,
    threads: int,
) -> Study:
    """Rank the units of every group and measure what losing them does to the model's answers.

    One pass over the samples gathers the second moments of all consumers' inputs; a few more runs over 64 samples
    relate each group's own error to that of the answers, and try the model without each block.

    Args:
        prepared: The dense graph as a file.
        model: The same, in memory; not changed.
        graph: What goes together in it.
        groups: Groups to study.
        blocks: Names of residual blocks to study.
        importance: Decides what goes first.
        samples: Unlabelled inputs.
        workspace: For instrumented graphs.
        threads: Compute threads.
    """
    weights = {
        name: np.asarray(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    consumers = [consumers_of(group) for group in groups]
    moments = collect_moments(
        [consumer.map for found in consumers for consumer in found],
        model=model,
        samples=samples,
        workspace=workspace,
        threads=threads,
    )
    few = samples.head(_SENSITIVITY_SAMPLES)
    probe = SensitivityProbe(model, consumers, samples=few, workspace=workspace, threads=threads)
    orders = [
        importance.order(group, found, weights=weights, moments=moments)
        for group, found in zip(groups, consumers, strict=True)
    ]
    sensitivities = probe.sensitivities(orders, weights=weights, moments=moments)
    studies = [
        GroupStudy(order, sensitivity.of(order.errors))
        for order, sensitivity in zip(orders, sensitivities, strict=True)
    ]
    block_errors = {}
    without = workspace / "without_block.onnx"
    for name in blocks:
        changed = ir.load(prepared)
        masked_blocks(changed, graph, [name])
        write_graph(changed, without)
        # Nodes and values refer to each other: without this, copies of the weights pile up until Python sees to it.
        del changed
        gc.collect()
        block_errors[name] = probe.error_of(without, threads=threads)
    rows_per_input = min(found.count / len(found.x) for found in moments.values())
    return Study(tuple(studies), block_errors, rows_per_input)
