"""Tells TorchServe what our series did, from a thread of its own."""

import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from serveprune.handlers.torchserve.metrics_file import CARRIED, dimensions
from serveprune.handlers.torchserve.told_metrics import Ledger
from serveprune.observability.metrics import Metric, Metrics

_log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_ROUNDS_TO_GAUGES = 5
_LINES_AT_ONCE = 32
_REST_SECONDS = 0.002
"""After so many lines, for requests go first."""

_SOCKET = re.compile(r"\.ts\.sock\.(?P<number>\d+)$")
_PORT_OPTION = "--port"


class TorchServeMetric(Protocol):
    """One of TorchServe's, which it is told of by a line on the worker's output."""

    dimension_names: list[str]

    def add_or_update(self, value: float, dimension_values: list[str]) -> None:
        """Write the line."""


class Teller:
    """Tells once a second, not once a batch: tiers get ready when nobody asks, and a batch need not wait for it."""

    def __init__(self, metrics: Metrics, declared: Mapping[Metric, TorchServeMetric], *, worker: str) -> None:
        """Prepare; nothing is told yet.

        Args:
            metrics: The live series.
            declared: Those that TorchServe takes.
            worker: See `worker_name`.
        """
        self._declared = declared
        self._ledger = Ledger(metrics, declared, worker=worker)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serveprune-metrics", daemon=True)

    def start(self) -> None:
        """Begin, if there is anything to tell."""
        if self._declared:
            self._thread.start()

    def stop(self) -> None:
        """End, once the last moves are told."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def tell(self, *, gauges: bool = True) -> None:
        """Tell what has moved."""
        for number, move in enumerate(self._ledger.moves(gauges=gauges), start=1):
            value = int(move.value) if move.value.is_integer() else move.value
            self._declared[move.metric].add_or_update(value, list(move.dimensions))
            if number % _LINES_AT_ONCE == 0:
                self._stopped.wait(_REST_SECONDS)

    def _run(self) -> None:
        rounds = 0
        while not self._stopped.wait(_INTERVAL_SECONDS):
            self._try(gauges=rounds % _ROUNDS_TO_GAUGES == 0)
            rounds += 1
        self._try(gauges=True)

    def _try(self, *, gauges: bool) -> None:
        try:
            self.tell(gauges=gauges)
        except Exception:  # the store's size, for one, cannot be had while its disk is away
            _log.exception("TorchServe could not be told all metrics")


def declared_metrics(cache: Mapping[Any, Mapping[str, TorchServeMetric]]) -> dict[Metric, TorchServeMetric]:
    """Return the metrics of our table that TorchServe's `metrics.yaml` has; it drops all others.

    Args:
        cache: Of TorchServe: kind -> name -> metric.
    """
    kinds = {kind.value: named for kind, named in cache.items()}
    found = {metric: kinds[metric.kind][metric.name] for metric in CARRIED if metric.name in kinds.get(metric.kind, {})}
    outdated = [metric for metric, theirs in found.items() if theirs.dimension_names != dimensions(metric)]
    for metric in outdated:
        del found[metric]
    if outdated:
        _log.warning(
            "metrics.yaml has other dimensions than expected, so TorchServe is not told of %s; write it anew by "
            "`serveprune torchserve metrics`",
            _listed(outdated),
        )
    elif not found:
        _log.info("metrics.yaml has none of serveprune's metrics; `serveprune torchserve metrics` writes one")
    return found


def worker_name(model: str, *, version: str, arguments: Sequence[str]) -> str:
    """Return what TorchServe calls this worker in its own metrics; it stays when the worker is started anew.

    Args:
        model: Name of the model.
        version: Of the archive.
        arguments: Of the worker's command line.
    """
    # By the number of its socket; where TCP is used that is the port.
    numbers = [match["number"] for each in arguments if (match := _SOCKET.search(each))]
    numbers += [port for option, port in pairwise(arguments) if option == _PORT_OPTION]
    return f"W-{numbers[0] if numbers else os.getpid()}-{model}_{version}"


def _listed(metrics: Iterable[Metric]) -> str:
    return ", ".join(metric.name for metric in metrics)
