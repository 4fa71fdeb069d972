"""Two machines are two `SharedFlight`s, each with a clock of its own that has nothing to do with the other's."""

import threading
from pathlib import Path

import pytest

from serveprune.artifacts.object_storage import ObjectStorage
from serveprune.artifacts.shared_flight import FlightNote, SharedFlight

LEASE_SECONDS = 30.0


class Ticking:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def storage(tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(f"file://{tmp_path}/shared", options={}, timeout_seconds=1)


def flight(storage: ObjectStorage, clock: Ticking, *, seconds: float = LEASE_SECONDS) -> SharedFlight:
    return SharedFlight(storage, "one", lease_seconds=seconds, on_lost=lambda: None, clock=clock)


def test_one_has_the_lease_until_it_lets_go(storage: ObjectStorage) -> None:
    first, second = flight(storage, Ticking(0)), flight(storage, Ticking(1e9))
    lease = first.try_take()
    assert lease is not None
    assert second.try_take() is None
    lease.failure = "why"
    lease.release()
    taken = second.try_take()
    assert taken is not None
    assert second.last is not None
    assert second.last.failure == "why"
    taken.release()


def test_of_many_at_once_one_gets_it(storage: ObjectStorage) -> None:
    barrier, leases = threading.Barrier(8), []

    def take() -> None:
        mine = flight(storage, Ticking(0))
        barrier.wait()
        leases.append(mine.try_take())

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [lease for lease in leases if lease is not None]
    assert len(held) == 1
    held[0].release()


def test_lease_of_a_dead_holder_is_taken_when_its_time_is_out_on_ones_own_clock(storage: ObjectStorage) -> None:
    storage.write("flights/one/1", FlightNote(holder="dead", renewals=7).model_dump_json().encode())
    clock = Ticking(5000.0)
    waiting = flight(storage, clock)
    assert waiting.try_take() is None
    clock.now += LEASE_SECONDS - 1
    assert waiting.try_take() is None
    clock.now += 1
    lease = waiting.try_take()
    assert lease is not None
    assert storage.list("flights/one") == ["2"]
    lease.release()


def test_renewal_begins_the_wait_anew(storage: ObjectStorage) -> None:
    note = FlightNote(holder="alive")
    storage.write("flights/one/1", note.model_dump_json().encode())
    clock = Ticking(0)
    waiting = flight(storage, clock)
    assert waiting.try_take() is None
    clock.now += LEASE_SECONDS - 1
    storage.write("flights/one/1", note.model_copy(update={"renewals": 1}).model_dump_json().encode())
    assert waiting.try_take() is None
    clock.now += LEASE_SECONDS - 1
    assert waiting.try_take() is None


def test_holder_renews_and_notices_that_it_lost(storage: ObjectStorage) -> None:
    lost = threading.Event()
    holder = SharedFlight(storage, "one", lease_seconds=0.2, on_lost=lost.set)
    lease = holder.try_take()
    assert lease is not None
    storage.create("flights/one/2", FlightNote(holder="other").model_dump_json().encode())
    assert lost.wait(60)
    lease.release()
    assert lease.is_lost
    other = FlightNote.model_validate_json(storage.read("flights/one/2") or b"")
    assert (other.holder, other.released) == ("other", False)


def test_torn_note_counts_by_whether_it_changes(storage: ObjectStorage) -> None:
    storage.write("flights/one/1", b"{")
    clock = Ticking(0)
    waiting = flight(storage, clock)
    assert waiting.try_take() is None
    clock.now += LEASE_SECONDS
    lease = waiting.try_take()
    assert lease is not None
    lease.release()


class _Unconditional(ObjectStorage):
    def create(self, name: str, content: bytes) -> bool:
        self.write(name, content)
        return True


def test_storage_that_ignores_conditions_gives_it_to_whoever_wrote_last(tmp_path: Path) -> None:
    class Overtaken(_Unconditional):
        def create(self, name: str, content: bytes) -> bool:
            super().create(name, content)
            return super().create(name, FlightNote(holder="faster").model_dump_json().encode())

    storage = Overtaken(f"file://{tmp_path}/shared", options={}, timeout_seconds=1)
    assert flight(storage, Ticking(0)).try_take() is None
