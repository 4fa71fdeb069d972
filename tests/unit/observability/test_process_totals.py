import os
import subprocess
import sys

import psutil
import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from serveprune.observability.process_totals import ProcessTotals

BUSY = "import os, sys\nwhile sum(os.times()[:2]) < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"


def families(*collectors: object) -> dict[str, float]:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)  # type: ignore[arg-type]  # the library's own protocol is private
    return {sample.name: sample.value for family in registry.collect() for sample in family.samples}


def test_series_are_the_usual_ones() -> None:
    usual = CollectorRegistry()
    ProcessCollector(registry=usual)
    expected = {sample.name: sample.value for family in usual.collect() for sample in family.samples}

    came = families(ProcessTotals())

    assert set(came) == set(expected)
    for name in ("process_virtual_memory_bytes", "process_max_fds", "process_start_time_seconds"):
        assert came[name] == pytest.approx(expected[name], rel=0.05)


def test_processes_add_up_and_what_a_dead_one_used_stays() -> None:
    totals = ProcessTotals()
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone = families(totals)
        totals.add(child.pid)
        both = families(totals)
        shared_once = psutil.Process(child.pid).memory_full_info().pss
        child.stdin.close()  # type: ignore[union-attr]
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0

    assert both["process_cpu_seconds_total"] >= alone["process_cpu_seconds_total"] + 0.3
    assert both["process_resident_memory_bytes"] > alone["process_resident_memory_bytes"] + 0.5 * shared_once
    assert both["process_open_fds"] > alone["process_open_fds"]
    totals.remove(child.pid, cpu_seconds=usage.ru_utime + usage.ru_stime)
    after = families(totals)
    assert after["process_cpu_seconds_total"] >= both["process_cpu_seconds_total"]
    assert after["process_resident_memory_bytes"] < both["process_resident_memory_bytes"]
