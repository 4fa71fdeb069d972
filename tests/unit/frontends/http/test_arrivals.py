import asyncio

from serveprune.frontends.http.arrivals import Arrivals


def test_all_that_arrives_in_one_round_is_started_before_it_proceeds() -> None:
    async def scenario() -> list[str]:
        happened: list[str] = []
        arrivals = Arrivals(asyncio.get_running_loop(), proceed=lambda: happened.append("proceed"))
        for name in "ab":
            arrivals.add(lambda name=name: happened.append(name))  # type: ignore[misc]
        happened.append("read")
        await asyncio.sleep(0)
        arrivals.add(lambda: happened.append("c"))
        await asyncio.sleep(0)
        return happened

    assert asyncio.run(scenario()) == ["read", "a", "b", "proceed", "c", "proceed"]


def test_what_arrives_while_others_are_started_comes_with_the_next_round() -> None:
    async def scenario() -> list[str]:
        happened: list[str] = []
        arrivals = Arrivals(asyncio.get_running_loop(), proceed=lambda: happened.append("proceed"))
        arrivals.add(lambda: arrivals.add(lambda: happened.append("later")))
        await asyncio.sleep(0.01)
        return happened

    assert asyncio.run(scenario()) == ["proceed", "later", "proceed"]
