"""The usual ``process_*`` series, of a server that consists of several processes."""

import threading
from collections.abc import Callable, Iterable, Iterator

import psutil
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric


class ProcessTotals:
    """What a supervisor and its processes take together. Thread-safe.

    Memory that processes share counts once, so the sum is what a container's limit is compared with.
    """

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._lock = threading.Lock()
        self._living: dict[int, psutil.Process] = {}
        self._cpu_seconds_of_dead = 0.0

    def add(self, pid: int) -> None:
        """Begin to count a process that was just started."""
        with self._lock:
            self._living[pid] = psutil.Process(pid)

    def remove(self, pid: int, *, cpu_seconds: float) -> None:
        """Keep what a process that ended had used, and no more."""
        with self._lock:
            self._living.pop(pid, None)
            self._cpu_seconds_of_dead += cpu_seconds

    def collect(self) -> Iterable[Metric]:
        """Yield the series under their usual names."""
        with self._lock:
            processes = (self._own, *self._living.values())
            cpu_seconds = self._cpu_seconds_of_dead + _total(processes, _cpu_seconds)
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds, by all processes that there were.",
            value=cpu_seconds,
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Resident memory of all processes in bytes; what they share counts once.",
            value=_total(processes, _resident_bytes),
        )
        yield GaugeMetricFamily(
            "process_virtual_memory_bytes",
            "Virtual memory of all processes in bytes.",
            value=_total(processes, lambda process: process.memory_info().vms),
        )
        yield GaugeMetricFamily(
            "process_start_time_seconds",
            "Start time of the supervisor since unix epoch in seconds.",
            value=self._own.create_time(),
        )
        yield GaugeMetricFamily(
            "process_open_fds",
            "Number of open file descriptors of all processes.",
            value=_total(processes, lambda process: process.num_fds()),
        )
        yield GaugeMetricFamily(
            "process_max_fds",
            "Sum of the maximum numbers of open file descriptors of all processes.",
            value=_total(processes, lambda process: process.rlimit(psutil.RLIMIT_NOFILE)[0]),
        )


def _total(processes: Iterable[psutil.Process], of_one: Callable[[psutil.Process], float]) -> float:
    return sum(_of_living(processes, of_one))


def _of_living(processes: Iterable[psutil.Process], of_one: Callable[[psutil.Process], float]) -> Iterator[float]:
    for process in processes:
        try:
            yield of_one(process)
        except psutil.Error:
            continue  # it ended just now, or has ended and was not waited for yet


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _resident_bytes(process: psutil.Process) -> float:
    return process.memory_full_info().pss
