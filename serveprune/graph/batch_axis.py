"""Whether the first axis of an ONNX file's inputs really is a batch axis, found out by running it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.backends.protocol import Session
from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.graph.onnx_file import write_graph
from serveprune.graph.probe import AXIS_SIZES, BATCHES, ProbeInput, generate_feeds
from serveprune.oip.tensor import Array

_SAME_ROW = 1e-4
"""Difference between a row alone and in a batch, relative to the output's scale, that rounding explains."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Single rows with their outputs, and the same rows as one batch."""

    singles: list[list[Array]]
    batch_feeds: dict[str, Array]


def batch_axis_notes(session: Session, inputs: Sequence[ProbeInput], *, label: str) -> tuple[str, ...]:
    """Run a graph at two batch sizes and say what is to know about its batch axis.

    Raises:
        InvalidArgument: The batch axis is declared dynamic, but the graph takes one size only.
    """
    fixed = [value for value in inputs if isinstance(value.shape[0], int)]
    if fixed:
        sizes = ", ".join(f"{value.name!r} at {value.shape[0]}" for value in fixed)
        return (f"the batch axis is fixed ({sizes}): requests cannot be batched",)
    rows, reason = _single_rows(session, inputs)
    if rows is None:
        return (f"the batch axis was not checked, for made-up inputs do not suit this graph: {reason}",)
    try:
        results = session.run(rows.batch_feeds)
    except ServePruneError as error:
        raise InvalidArgument(
            f"{label}: the batch axis is declared dynamic, but the graph takes 1 row and not {BATCHES[-1]}: "
            f"{error.message}; fix the axis at 1 in the file, or export it again with a dynamic batch axis"
        ) from error
    mismatch = _shape_mismatch(session, rows, results)
    if mismatch:
        raise InvalidArgument(f"{label}: {mismatch}; every output needs the batch as its first axis")
    if not _rows_agree(rows, results):
        return ("an answer changes with its neighbours in the batch",)
    return ()


def free_batch_axis(model: ir.Model, inputs: Sequence[ProbeInput], *, session: Session, path: Path) -> Session | None:
    """Make a batch axis that is fixed at 1 dynamic, if the graph then gives each row the same answer.

    Args:
        model: Changed in place when this succeeds; reload it when it does not.
        inputs: The inputs, all with a first axis of 1.
        session: The graph as it is.
        path: Where the changed graph is written.

    Returns:
        The changed graph, loaded; ``None`` if it has to stay as it is.
    """
    rows, _ = _single_rows(session, inputs)
    if rows is None:
        return None
    _declare_dynamic(model)
    write_graph(model, path)
    try:
        freed = OnnxRuntimeBackend().load(path)
        results = freed.run(rows.batch_feeds)
    except ServePruneError:
        # The graph relies on the size (a Reshape to fixed sizes); the caller keeps it fixed and says so.
        return None
    return freed if not _shape_mismatch(freed, rows, results) and _rows_agree(rows, results) else None


def _declare_dynamic(model: ir.Model) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape) > 0 and value.shape[0] == 1:
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    outputs = {id(value) for value in model.graph.outputs}
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if id(value) not in outputs:
                    value.shape = None  # it was inferred for a batch of 1


def _single_rows(session: Session, inputs: Sequence[ProbeInput]) -> tuple[_Rows | None, str]:
    reason = "no size suits"
    for _, size in AXIS_SIZES:
        feeds = [generate_feeds(inputs, batch=1, size=size, seed=seed) for seed in range(BATCHES[-1])]
        try:
            singles = [session.run(feed) for feed in feeds]
        except ServePruneError as error:
            reason = error.message
            continue
        return _Rows(singles, {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}), ""
    return None, reason


def _shape_mismatch(session: Session, rows: _Rows, results: Sequence[Array]) -> str | None:
    count = len(rows.singles)
    for spec, result in zip(session.outputs, results, strict=True):
        if result.ndim == 0 or result.shape[0] != count:
            return f"output {spec.name!r} has shape {list(result.shape)} for a batch of {count}"
    return None


def _rows_agree(rows: _Rows, results: Sequence[Array]) -> bool:
    return all(
        _same(single[position], result[row : row + 1])
        for row, single in enumerate(rows.singles)
        for position, result in enumerate(results)
    )


def _same(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    scale = float(np.abs(one).max(initial=0.0, where=np.isfinite(one)))
    return bool(np.allclose(one, other, rtol=0.0, atol=_SAME_ROW * max(scale, 1e-3), equal_nan=True))
