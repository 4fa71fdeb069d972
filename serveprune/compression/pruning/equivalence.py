"""The check that makes surgery safe: the small graph computes what the masked graph computes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.compression.pruning.dependency_graph import DependencyGraph
from serveprune.compression.pruning.surgery import masked, masked_blocks, remove_blocks, remove_units
from serveprune.errors import BuildFailed, ServePruneError
from serveprune.graph.onnx_file import write_graph
from serveprune.oip.tensor import Array

Feed = Mapping[str, Array]
_SMALLEST_SCALE = 1e-3
_ROUNDINGS = 4
"""Steps of its precision by which a graph's answers may differ: sums of other lengths round elsewhere."""


def check_equivalence(
    small: Path,
    masked: Path,
    feeds: Iterable[Feed],
    *,
    tolerance: float = 1e-4,
    blame: Callable[[], str | None] = lambda: None,
) -> float:
    """Compare two graphs on given inputs.

    Args:
        small: The graph after surgery.
        masked: The graph of full size in which what was removed is zero wherever it is summed over.
        feeds: Inputs, of any size.
        tolerance: Largest difference allowed, relative to the largest absolute value of the output; a few roundings
            where the masked graph has weights of less precision than that.
        blame: Finds out what is at fault, for the message; called only when the graphs differ.

    Returns:
        The largest relative difference seen.

    Raises:
        BuildFailed: They differ by more.
    """
    problem, difference = _compare(small, masked, feeds, tolerance=tolerance)
    if problem is not None:
        culprit = blame()
        where = f"; the first group at fault is {culprit!r}: add it to `ignore`" if culprit else ""
        raise BuildFailed(f"the pruned graph does not compute what the masked graph computes: {problem}{where}")
    return difference


def check_surgery(
    source: Path,
    graph: DependencyGraph,
    removed: Sequence[int],
    feeds: Sequence[Feed],
    *,
    workspace: Path,
    blocks: Sequence[str] = (),
    tolerance: float = 1e-4,
) -> float:
    """Remove units and blocks from a graph, and check that this is the same as masking them.

    Args:
        source: The graph that ``graph`` was made from.
        graph: What goes together.
        removed: Unit ids.
        feeds: Inputs to compare on.
        workspace: Where both graphs are written.
        blocks: Names of residual blocks to remove.
        tolerance: See `check_equivalence`.

    Raises:
        BuildFailed: They differ; the message names the offending group, found by removing one group at a time.
    """
    paths = _write_pair(source, graph, removed, blocks, workspace=workspace)
    return check_equivalence(
        *paths,
        feeds,
        tolerance=tolerance,
        blame=lambda: offending_group(source, graph, removed, feeds, workspace=workspace, tolerance=tolerance),
    )


def offending_group(
    source: Path,
    graph: DependencyGraph,
    removed: Sequence[int],
    feeds: Sequence[Feed],
    *,
    workspace: Path,
    tolerance: float = 1e-4,
) -> str | None:
    """Return the name of the first group whose removal alone is not the same as masking it."""
    for group in graph.groups:
        units = [int(unit) for unit in group.units if unit in set(removed)]
        if not units:
            continue
        small, whole = _write_pair(source, graph, units, (), workspace=workspace)
        problem, _ = _compare(small, whole, feeds, tolerance=tolerance)
        if problem is not None:
            return group.name
    return None


def _write_pair(
    source: Path, graph: DependencyGraph, removed: Sequence[int], blocks: Sequence[str], *, workspace: Path
) -> tuple[Path, Path]:
    small, whole = ir.load(source), ir.load(source)
    remove_blocks(small, graph, blocks)
    remove_units(small, graph, removed)
    masked_blocks(whole, graph, blocks)
    masked(whole, graph, removed)
    paths = workspace / "small", workspace / "masked"
    for folder, model in zip(paths, (small, whole), strict=True):
        folder.mkdir(exist_ok=True)
        write_graph(model, folder / "model.onnx")
    return paths[0] / "model.onnx", paths[1] / "model.onnx"


def _compare(small: Path, masked: Path, feeds: Iterable[Feed], *, tolerance: float) -> tuple[str | None, float]:
    """Return what is wrong, if anything, and the largest relative difference."""
    backend = OnnxRuntimeBackend()
    tolerance = max(tolerance, _ROUNDINGS * _precision(masked))
    try:
        sessions = [backend.load(path) for path in (small, masked)]
        worst = 0.0
        for feed in feeds:
            pairs = zip(*(session.run(feed) for session in sessions), strict=True)
            for spec, (one, other) in zip(sessions[1].outputs, pairs, strict=True):
                if one.shape != other.shape:
                    return f"output {spec.name!r} has shape {one.shape} instead of {other.shape}", np.inf
                worst = max(worst, _relative_difference(one, other))
                if worst > tolerance:
                    return f"output {spec.name!r} differs by {worst:.2g} of its scale (allowed: {tolerance:g})", worst
    except ServePruneError as error:
        return f"it does not run: {error.message}", np.inf
    return None, worst


def _precision(graph: Path) -> float:
    """Return the relative step of the coarsest floats among a graph's weights, 1e-3 for float16."""
    tensors = (value.const_value for value in ir.load(graph).graph.initializers.values())
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return max((float(dtype.eps) for dtype in dtypes if dtype.is_floating_point()), default=0.0)


def _relative_difference(one: Array, other: Array) -> float:
    if one.dtype.kind not in "fc":
        return 0.0 if np.array_equal(one, other) else np.inf
    finite = np.isfinite(other)
    if not np.array_equal(finite, np.isfinite(one)):
        return np.inf
    scale = max(float(np.abs(other).max(initial=0.0, where=finite)), _SMALLEST_SCALE)
    return float(np.abs(one - other).max(initial=0.0, where=finite)) / scale
