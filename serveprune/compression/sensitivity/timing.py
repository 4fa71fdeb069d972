"""Milliseconds that a change to a few nodes gains: these nodes before and after, timed in turns."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from serveprune.artifacts.manifest import LatencyRecord
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
from serveprune.backends.protocol import Session
from serveprune.evaluation.latency import latency_clock, measure_latency
from serveprune.oip.tensor import Array

_ROUNDS = 40
_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Piece:
    """A few nodes as a model of their own, with inputs that fit."""

    model: onnx.ModelProto
    feeds: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Gain:
    """Milliseconds of one batch that a change saves; percentiles are over rounds."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


@dataclass(slots=True)
class PieceTimer:
    """Times pieces in pairs; pieces of one structure are timed once, for weights make no difference.

    Attributes:
        batch_size: Rows of the batch.
        threads: Threads of one batch in serving.
        workspace: For files the backend loads.
    """

    batch_size: int
    threads: int
    workspace: Path
    _known: dict[str, Gain] = field(default_factory=dict)

    def gain(self, before: Piece, after: Piece, *, structure: str) -> Gain:
        """Return what it saves to compute ``after`` in place of ``before``.

        The whole model is not timed for each change: its noise is larger than what one layer gains.

        Args:
            before: The nodes as they are.
            after: The nodes as changed.
            structure: Equal for pairs that take equal time.
        """
        if structure not in self._known:
            with closing(self._loaded(before)) as old, closing(self._loaded(after)) as new:
                self._known[structure] = _gain(self._compare(old, before.feeds, new, after.feeds))
        return self._known[structure]

    def milliseconds(self, graph: Path, feeds: Mapping[str, Array]) -> float:
        """Return the median time of a whole graph."""
        with closing(OnnxRuntimeBackend().load(graph, threads=self.threads)) as session:
            return self._compare(session, feeds, session, feeds).dense_ms

    def _loaded(self, piece: Piece) -> Session:
        path = self.workspace / "piece.timed.onnx"
        onnx.save(piece.model, path)
        try:
            return OnnxRuntimeBackend().load(path, threads=self.threads)
        finally:
            path.unlink()

    def _compare(
        self, old: Session, old_feeds: Mapping[str, Array], new: Session, new_feeds: Mapping[str, Array]
    ) -> LatencyRecord:
        return measure_latency(
            lambda: old.run(old_feeds),
            lambda: new.run(new_feeds),
            batch_size=self.batch_size,
            threads=self.threads,
            rounds=_ROUNDS,
            budget_seconds=_SECONDS,
            clock=latency_clock(self.threads),
        )


def _gain(latency: LatencyRecord) -> Gain:
    median, low, high = (
        latency.dense_ms * (1 - ratio) for ratio in (latency.ratio, latency.ratio_high, latency.ratio_low)
    )
    return Gain(median, low, high, latency.rounds)


def captured(graph: Path, names: Sequence[str], *, feeds: Mapping[str, Array], workspace: Path) -> dict[str, Array]:
    """Run a graph once and return these values of it, inputs included."""
    model = onnx.load(graph)
    made = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in dict.fromkeys(names) if name in made]
    shown = {output.name for output in model.graph.output}
    # ONNX Runtime infers the types of outputs that do not say theirs.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in shown)
    path = workspace / "captured.onnx"
    onnx.save(model, path)
    try:
        with closing(OnnxRuntimeBackend().load(path)) as session:
            arrays = session.run(feeds, outputs=wanted) if wanted else []
    finally:
        path.unlink()
    return dict(feeds) | dict(zip(wanted, arrays, strict=True))
