import asyncio
import threading

import pytest

from serveprune.frontends.http.completions import Completions


@pytest.mark.parametrize("waking", ["call_soon", "call_soon_threadsafe"])
def test_all_that_is_finished_at_once_is_told_in_one_wake_up(waking: str) -> None:
    async def scenario() -> tuple[list[int], int]:
        loop, told, wakes = asyncio.get_running_loop(), list[int](), 0
        completions = Completions(loop)
        real = getattr(loop, waking)

        def counted(*arguments: object, **options: object) -> object:
            nonlocal wakes
            wakes += 1
            return real(*arguments, **options)

        def finish() -> None:
            for index in range(100):
                completions.add(lambda index=index: told.append(index))  # type: ignore[misc]

        setattr(loop, waking, counted)
        if waking == "call_soon":
            finish()
        else:
            thread = threading.Thread(target=finish)
            thread.start()
            # The loop must not turn meanwhile.
            thread.join()
        setattr(loop, waking, real)
        await asyncio.sleep(0.05)
        return told, wakes

    assert asyncio.run(scenario()) == (list(range(100)), 1)


def test_nothing_is_lost_when_many_threads_finish() -> None:
    async def scenario() -> int:
        told: list[int] = []
        completions = Completions(asyncio.get_running_loop())

        def finish() -> None:
            for index in range(500):
                completions.add(lambda: told.append(index))  # noqa: B023

        threads = [threading.Thread(target=finish) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or len(told) < 4000:
            await asyncio.sleep(0.001)
        return len(told)

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == 4000


def test_others_are_told_when_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> list[str]:
        told: list[str] = []
        completions = Completions(asyncio.get_running_loop())
        completions.add(lambda: told[1:0].remove("nobody"))
        completions.add(lambda: told.append("second"))
        await asyncio.sleep(0.05)
        return told

    assert asyncio.run(scenario()) == ["second"]
    assert "could not be written" in caplog.text


def test_what_finishes_after_the_end_of_the_loop_is_forgotten() -> None:
    loop = asyncio.new_event_loop()
    completions = Completions(loop)
    loop.close()

    completions.add(lambda: None)
