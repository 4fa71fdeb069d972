"""Times graphs in turns on the backend that will serve them, and keeps the times on disk."""

import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from serveprune.artifacts.digest import sha256_json
from serveprune.artifacts.environment import environment
from serveprune.backends.protocol import Backend, Session
from serveprune.evaluation.latency import latency_clock
from serveprune.oip.tensor import Array

_log = logging.getLogger(__name__)

_REVISION = 1
"""Part of every key: raised when times would be taken differently."""

_LEAST_ROUNDS = 3
_MOST_ROUNDS = 11
_SHORTEST_TIMING_SECONDS = 0.001
_MOST_REPEATS = 50
_QUANTILE = 0.25
"""What else the machine does only ever adds to a time, so the lower quartile says more than the median."""

Runnable = tuple[ir.Model, Mapping[str, Array]]
"""A graph, and one batch of inputs for it."""


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Where and how times are taken.

    Attributes:
        backend: What will serve the model.
        threads: Threads of one batch there.
        workspace: Folder in which graphs are written for the backend to load; they are removed again.
        cache: Folder of the times taken on this host before; ``None`` keeps none.
        clock: Seconds from any fixed moment; by default `latency_clock`. A backend that waits for a device needs
            the wall clock, ``time.perf_counter``.
    """

    backend: Backend
    threads: int
    workspace: Path
    cache: Path | None = None
    clock: Callable[[], float] | None = None

    def times_ms(
        self, runnables: Sequence[Callable[[], Runnable]], *, structure: object, budget_seconds: float
    ) -> list[float]:
        """Return the milliseconds of one run of each graph, from the cache if they were taken before.

        The graphs take turns in random order, so that what else the machine does meets all alike.

        Args:
            runnables: Make the graphs; called only if they have to be timed.
            structure: Says which graphs these are, in JSON's types; part of the cache's key.
            budget_seconds: No further round begins after so long, but three rounds are always run.
        """
        key = sha256_json(
            {
                "revision": _REVISION,
                "structure": structure,
                "backend": self.backend.name,
                "threads": self.threads,
                "clock": getattr(self.clock, "__name__", "default"),
                "processors": os.cpu_count(),
                "environment": environment(),
            }
        )
        known = self._cached(key, count=len(runnables))
        if known is not None:
            return known
        with ExitStack() as loaded:
            calls = []
            for make in runnables:
                graph, feeds = make()
                session = self.load(graph)
                loaded.callback(session.close)
                calls.append(partial(session.run, feeds))
            clock = self.clock or latency_clock(self.threads)
            times = _times_ms(calls, budget_seconds=budget_seconds, clock=clock)
        self._keep(key, times)
        return times

    def load(self, model: ir.Model) -> Session:
        """Load a graph on the backend."""
        path = self.workspace / "timed.onnx"
        ir.save(model, path)
        try:
            return self.backend.load(path, threads=self.threads)
        finally:
            path.unlink()

    def _cached(self, key: str, *, count: int) -> list[float] | None:
        if self.cache is None:
            return None
        path = self.cache / f"{key}.json"
        try:
            times = [float(value) for value in json.loads(path.read_text(encoding="utf-8"))["milliseconds"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("times in %s cannot be read and are taken anew: %s", path, error)
            return None
        if len(times) != count or not all(math.isfinite(value) and value > 0 for value in times):
            _log.warning("times in %s are not %d positive numbers and are taken anew", path, count)
            return None
        return times

    def _keep(self, key: str, times: Sequence[float]) -> None:
        if self.cache is None:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        # Another build may write the same entry; each is whole when it gets its name.
        partial = self.cache / f".{key}.{os.getpid()}.partial"
        partial.write_text(json.dumps({"milliseconds": list(times)}), encoding="utf-8")
        partial.replace(self.cache / f"{key}.json")


def _times_ms(
    calls: Sequence[Callable[[], object]], *, budget_seconds: float, clock: Callable[[], float]
) -> list[float]:
    order = random.Random(0)
    start = time.monotonic()
    repeats = []
    for call in calls:
        _seconds(call, repeats=1, clock=clock)
        once = max(_seconds(call, repeats=1, clock=clock), 1e-9)
        repeats.append(min(max(math.ceil(_SHORTEST_TIMING_SECONDS / once), 1), _MOST_REPEATS))
    taken: list[list[float]] = [[] for _ in calls]
    for finished in range(_MOST_ROUNDS):
        if finished >= _LEAST_ROUNDS and time.monotonic() - start >= budget_seconds:
            break
        for which in order.sample(range(len(calls)), len(calls)):
            taken[which].append(_seconds(calls[which], repeats=repeats[which], clock=clock))
    return [float(np.quantile(seconds, _QUANTILE)) * 1000 for seconds in taken]


def _seconds(call: Callable[[], object], *, repeats: int, clock: Callable[[], float]) -> float:
    """Return the mean seconds of one call."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats
