import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serveprune.artifacts.file_lock import FileLock
from serveprune.artifacts.single_flight import remove_idle_locks, single_flight
from serveprune.artifacts.store import ArtifactStore


def test_single_flight_admits_one_thread_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0

    def fly(_: int) -> None:
        nonlocal inside, most
        # Separate stores, as two parts of one process might have.
        with ArtifactStore(tmp_path, max_bytes=1).single_flight("boots@int8"):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.002)
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fly, range(40)))
    assert most == 1


def test_single_flight_lets_different_names_fly_together(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, max_bytes=1)
    both = threading.Barrier(2, timeout=60)

    def fly(name: str) -> None:
        with store.single_flight(name):
            both.wait()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(fly, ("a", "b")))


def test_single_flight_admits_the_next_when_the_first_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with pytest.raises(ValueError, match="crash"), single_flight(path):
        raise ValueError("crash")
    with single_flight(path):
        pass


def test_remove_idle_locks_leaves_those_that_are_held(tmp_path: Path) -> None:
    with single_flight(tmp_path / "held.lock"):
        with single_flight(tmp_path / "idle.lock"):
            pass
        assert remove_idle_locks(tmp_path) == [tmp_path / "idle.lock"]
    assert remove_idle_locks(tmp_path) == [tmp_path / "held.lock"]
    assert remove_idle_locks(tmp_path / "absent") == []


def test_single_flight_stays_exclusive_when_lock_files_are_removed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    inside = 0
    most = 0
    done = threading.Event()

    def fly(_: int) -> None:
        nonlocal inside, most
        with single_flight(path):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.001)
            inside -= 1

    def collect() -> None:
        while not done.is_set():
            remove_idle_locks(tmp_path)

    with ThreadPoolExecutor(5) as threads:
        collecting = threads.submit(collect)
        for flight in [threads.submit(fly, number) for number in range(100)]:
            flight.result()
        done.set()
        collecting.result()
    assert most == 1


def test_file_lock_is_shared_or_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with FileLock.shared(path), FileLock.shared(path):
        assert FileLock.try_exclusive(path) is None
    alone = FileLock.try_exclusive(path)
    assert alone is not None
    assert FileLock.try_exclusive(path) is None
    alone.release()


def test_file_lock_raises_when_the_file_was_removed_while_waiting(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = FileLock.exclusive(path)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(FileLock.shared, path)
        holder.discard()
        with pytest.raises(FileNotFoundError):
            waiting.result()
