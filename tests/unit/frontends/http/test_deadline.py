import asyncio
from collections.abc import Awaitable, Callable

from serveprune.frontends.http.deadline import Deadline


class CountingLoop:
    """The running event loop, and how many timers it was asked for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.timers = 0

    def time(self) -> float:
        return self._loop.time()

    def call_at(self, when: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        self.timers += 1
        return self._loop.call_at(when, action)


def run(scenario: Callable[[CountingLoop, list[str], Deadline], Awaitable[None]]) -> tuple[list[str], int]:
    async def with_loop() -> tuple[list[str], int]:
        loop, rung = CountingLoop(), list[str]()
        deadline = Deadline(loop, lambda: rung.append("rung"))  # type: ignore[arg-type]
        await scenario(loop, rung, deadline)
        return rung, loop.timers

    return asyncio.run(with_loop())


def test_deadline_rings_once_when_its_moment_has_come() -> None:
    async def scenario(loop: CountingLoop, rung: list[str], deadline: Deadline) -> None:
        deadline.set(0.01)
        await asyncio.sleep(0.1)

    assert run(scenario) == (["rung"], 1)


def test_deadline_rings_at_the_last_moment_it_was_set_to() -> None:
    async def scenario(loop: CountingLoop, rung: list[str], deadline: Deadline) -> None:
        deadline.set(0.02)
        deadline.set(0.2)
        await asyncio.sleep(0.1)
        assert rung == []
        assert deadline.is_set
        await asyncio.sleep(0.2)

    assert run(scenario)[0] == ["rung"]


def test_deadline_rings_sooner_when_it_is_moved_to_a_sooner_moment() -> None:
    async def scenario(loop: CountingLoop, rung: list[str], deadline: Deadline) -> None:
        deadline.set(3600)
        deadline.set(0.01)
        await asyncio.sleep(0.1)

    assert run(scenario)[0] == ["rung"]


def test_deadline_is_silent_when_it_was_cleared_or_closed() -> None:
    async def scenario(loop: CountingLoop, rung: list[str], deadline: Deadline) -> None:
        deadline.set(0.01)
        deadline.clear()
        assert not deadline.is_set
        await asyncio.sleep(0.05)
        deadline.set(0.01)
        deadline.close()
        deadline.set(0.01)
        await asyncio.sleep(0.05)

    assert run(scenario)[0] == []


def test_deadline_that_moves_ever_later_costs_one_timer() -> None:
    async def scenario(loop: CountingLoop, rung: list[str], deadline: Deadline) -> None:
        for _ in range(1000):
            deadline.set(60)
            deadline.clear()
            deadline.set(75)
        deadline.close()

    assert run(scenario) == ([], 1)
