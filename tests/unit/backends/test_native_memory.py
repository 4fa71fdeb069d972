import subprocess
import sys

import pytest

_MEASURE = """
import sys, threading
import numpy as np, psutil
from serveprune.backends.native_memory import give_back, keep_little

def resident():
    return psutil.Process().memory_info().rss / 2**20

def use(pins):
    # The first large block that is freed raises glibc's own bounds, and the last small one pins what lies before it.
    np.ones(30 * 2**20, np.uint8)
    blocks = [np.ones(100_000, np.uint8) for _ in range(1000)]
    pins.append(np.ones(100_000, np.uint8))
    more = [np.ones(100_000, np.uint8) for _ in range(500)]

def in_thread(pins):
    thread = threading.Thread(target=use, args=(pins,))
    thread.start()
    thread.join()

if "keep" in sys.argv:
    keep_little()
pins = []
start = resident()
in_thread(pins)
kept = resident() - start
if "give" in sys.argv:
    give_back()
print(kept, resident() - start)
"""
_ALLOCATED_MIB = 150_000_000 / 2**20


def measured(*steps: str) -> tuple[float, float]:
    """Return how much larger a process is after use, before and after it gave memory back, in MiB."""
    finished = subprocess.run([sys.executable, "-c", _MEASURE, *steps], capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    before, after = map(float, finished.stdout.split())
    return before, after


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_goes_back_to_the_system_when_it_is_given_back() -> None:
    before, after = measured("keep", "give")

    assert before > 0.5 * _ALLOCATED_MIB
    assert after < 0.1 * _ALLOCATED_MIB


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_end_of_a_threads_heap_is_only_given_back_when_little_is_kept() -> None:
    _, kept = measured("give")
    _, little = measured("keep", "give")

    assert little < 0.1 * _ALLOCATED_MIB < kept
