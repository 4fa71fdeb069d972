"""Builds a tier in a process of its own, so that its memory is that of the build alone."""

import multiprocessing
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.store import ArtifactStore
from serveprune.compression.build import build
from serveprune.config.server import StoreConfig


@dataclass(frozen=True, slots=True)
class BuildCost:
    """What a build took, measuring included.

    Attributes:
        key: Of the artifact.
        wall_seconds: Time on the wall.
        processor_seconds: Of all threads together; what else the machine does hardly changes it.
        peak_bytes: Most resident memory of its process.
    """

    key: str
    wall_seconds: float
    processor_seconds: float
    peak_bytes: int


def build_isolated(request: BuildRequest, *, store: Path, threads_of_serving: int) -> BuildCost:
    """Build, and report the cost.

    Raises:
        ServePruneError: Whatever the build raises.
    """
    # Forked processes would begin with this one's memory.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_build, request, store, threads_of_serving).result()


def _build(request: BuildRequest, store: Path, threads_of_serving: int) -> BuildCost:
    started, worked = time.monotonic(), time.process_time()
    config = StoreConfig(path=store)
    result = build(
        request,
        store=ArtifactStore(config.folder, max_bytes=config.max_bytes),
        threads=os.cpu_count() or 1,
        threads_of_serving=threads_of_serving,
        on_progress=lambda progress: None,
    )
    assert result.key is not None
    # Not `ru_maxrss`: that remembers the process this one was started from.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return BuildCost(result.key, time.monotonic() - started, time.process_time() - worked, int(found.group(1)) * 1024)
