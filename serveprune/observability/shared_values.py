"""Series of several processes as one: each keeps its values in files, and whoever is scraped adds them up."""

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serveprune.observability.metrics import METRICS, Metric

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_NEW_FILE_SECONDS = 0.05


@contextmanager
def values_shared(folder: Path, *, process: str) -> Iterator[None]:
    """Keep the values of all series that are made within the context in files of a folder.

    A process that takes the place of a dead one, under its name, goes on from what that one had counted; so
    counters never fall, and there are no more files than there are names.

    Args:
        folder: Exists, and is this server's alone.
        process: Name of this process, without an underscore; no two at the same time have the same.
    """
    before = values.ValueClass, os.environ.get(_FOLDER_VARIABLE)
    os.environ[_FOLDER_VARIABLE] = str(folder)  # the library reads it whenever it opens a file
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]  # no annotations
    try:
        yield
    finally:
        values.ValueClass.close_all_files()
        values.ValueClass, variable = before
        if variable is None:
            del os.environ[_FOLDER_VARIABLE]
        else:
            os.environ[_FOLDER_VARIABLE] = variable


def forget_gauges(folder: Path, *, process: str) -> None:
    """Take the gauges of a process that died out of the sums; what it counted stays."""
    mark_process_dead(process, path=str(folder))  # type: ignore[no-untyped-call]  # no annotations


class MergedCollector:
    """The series of the table over all processes, to be registered in place of those of one."""

    def __init__(self, folder: Path, *, gauges: Mapping[Metric, Callable[[], float]]) -> None:
        """Remember where values are.

        Args:
            folder: Where the processes keep them.
            gauges: Gauges without labels that are of the whole server, and read when somebody asks.
        """
        self._folder = folder
        self._gauges = dict(gauges)

    def collect(self) -> Iterable[Family]:
        """Yield the whole table in its order; what nobody has used yet is there without samples."""
        merged = {family.name: family for family in self._merged()}
        for metric in METRICS:
            # The exposition format names a counter's family without its suffix.
            name = metric.name.removesuffix("_total")
            family = Family(name, metric.help, metric.kind)
            if metric in self._gauges:
                family.add_sample(name, {}, self._gauges[metric]())
            elif name in merged:
                family.samples = merged[name].samples
            yield family

    def _merged(self) -> list[Family]:
        collector: Any = MultiProcessCollector(None, path=str(self._folder))  # type: ignore[no-untyped-call]
        try:
            return list(collector.collect())
        except struct.error:
            # A process that starts has made a file and not yet put anything in it; the library takes that amiss.
            time.sleep(_NEW_FILE_SECONDS)
            return list(collector.collect())
