"""What a server could reach at most: ONNX Runtime in this process, without any server, on batches that are ready."""

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnxruntime as ort
from serving_workloads import Workload

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_LEAST_RUNS = 3
_WARM_UP_RUNS = 2


@dataclass(frozen=True, slots=True)
class Arrangement:
    """So many Python threads, each of which runs its own session on batches of its own."""

    executors: int
    threads: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.executors} x {self.threads} threads, batch {self.batch_size}"


@dataclass(slots=True)
class InProcessLimit:
    """Rows per second of each arrangement, round after round."""

    workload: Workload
    cores: int = 2
    rows_per_second: dict[Arrangement, list[float]] = field(default_factory=dict)
    one_row_ms: list[float] = field(default_factory=list)

    def measure(self, *, seconds: float) -> None:
        """Measure every arrangement for so long, and the latency of one row alone."""
        for executors, threads in ((self.cores, 1), (1, self.cores)):
            runs = [_runner(self.workload, threads=threads) for _ in range(executors)]
            for size in BATCH_SIZES:
                found = _rows_per_second([partial(run, size) for run in runs], size=size, seconds=seconds)
                self.rows_per_second.setdefault(Arrangement(executors, threads, size), []).append(found)
        run = _runner(self.workload, threads=1)
        times = _times(lambda: run(1), seconds=seconds)
        self.one_row_ms.append(statistics.median(times) * 1000)

    def best(self) -> tuple[Arrangement, float]:
        """Return the fastest arrangement by the median of its rounds, and its rows per second."""
        medians = {each: statistics.median(found) for each, found in self.rows_per_second.items()}
        best = max(medians, key=lambda each: medians[each])
        return best, medians[best]


def _runner(workload: Workload, *, threads: int) -> Callable[[int], object]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(workload.graph), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    rows = workload.feeds
    batches: Mapping[int, Mapping[str, np.ndarray]] = {
        size: {name: np.concatenate([rows[i % len(rows)][name] for i in range(size)]) for name in rows[0]}
        for size in BATCH_SIZES
    }
    return lambda size: session.run(names, batches[size])


def _times(run: Callable[[], object], *, seconds: float) -> list[float]:
    for _ in range(_WARM_UP_RUNS):
        run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < _LEAST_RUNS or time.perf_counter() < deadline:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def _rows_per_second(runs: list[Callable[[], object]], *, size: int, seconds: float) -> float:
    """Return the sum of what each thread reaches while the others run too."""
    rates = [0.0] * len(runs)
    barrier = threading.Barrier(len(runs))

    def work(index: int) -> None:
        run = runs[index]
        for _ in range(_WARM_UP_RUNS):
            run()
        barrier.wait()
        started, done = time.perf_counter(), 0
        while done < _LEAST_RUNS or time.perf_counter() - started < seconds:
            run()
            done += 1
        rates[index] = done * size / (time.perf_counter() - started)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(runs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)
