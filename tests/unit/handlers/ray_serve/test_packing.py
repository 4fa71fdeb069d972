from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serveprune.handlers.ray_serve.packing import Pack, PackingRules, VariantCost, pack

MIB = 2**20
RULES = PackingRules(
    small_batch_ms=20.0,
    small_bytes=64 * MIB,
    shared_bytes=100 * MIB,
    process_bytes=400 * MIB,
    bytes_per_graph_byte=3.0,
)

costs = st.lists(
    st.builds(
        VariantCost,
        identity=st.tuples(st.sampled_from("ab"), st.sampled_from("12"), st.sampled_from(("dense", "int8", "lean"))),
        batch_ms=st.none() | st.floats(0.0, 100.0),
        graph_bytes=st.none() | st.integers(0, 200 * MIB),
        alone=st.booleans(),
        shares=st.booleans(),
    ),
    unique_by=lambda cost: cost.identity,
    max_size=12,
)
small = st.builds(lambda cost_ms, size: (cost_ms, size), st.floats(0.0, 20.0), st.integers(0, 64 * MIB))


def cost(tier: str, batch_ms: float | None, mib: int | None, **said: bool) -> VariantCost:
    return VariantCost(("m", "1", tier), batch_ms, None if mib is None else mib * MIB, **said)


def members(packs: Sequence[Pack]) -> dict[str, list[str]]:
    return {each.name: [tier for _, _, tier in each.identities] for each in packs}


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ([cost("dense", 50.0, 10), cost("int8", 5.0, 3), cost("lean", 9.0, 5)], {"m@dense": 1, "shared-1": 2}),
        ([cost("dense", 5.0, 90), cost("int8", 5.0, 3)], {"m@dense": 1, "m@int8": 1}),
        ([cost("dense", None, 1), cost("int8", None, None)], {"m@dense": 1, "m@int8": 1}),
        ([cost("dense", None, 1, shares=True), cost("int8", None, None, shares=True)], {"shared-1": 2}),
        ([cost("dense", 1.0, 1, alone=True), cost("int8", 1.0, 1)], {"m@dense": 1, "m@int8": 1}),
        ([cost("a", 1.0, 60), cost("b", 1.0, 60), cost("c", 1.0, 40)], {"shared-1": 2, "m@b": 1}),
    ],
)
def test_small_variants_share_and_others_stand_alone(every: list[VariantCost], expected: dict[str, int]) -> None:
    assert {name: len(tiers) for name, tiers in members(pack(every, RULES, threads=1)).items()} == expected


def test_replica_asks_for_the_cores_of_a_batch_and_the_memory_of_its_graphs() -> None:
    (shared,) = pack([cost("dense", 5.0, 10), cost("int8", 5.0, 3)], RULES, threads=3)
    assert (shared.num_cpus, shared.memory_bytes) == (3, (400 + 3 * 13) * MIB)
    (unknown,) = pack([cost("dense", None, None)], RULES, threads=1)
    assert unknown.memory_bytes is None


def test_deployment_names_the_version_where_a_tier_has_several() -> None:
    every = [VariantCost(("m", version, "dense")) for version in "12"]
    assert [each.name for each in pack(every, RULES, threads=1)] == ["m:1@dense", "m:2@dense"]


@given(costs)
def test_every_variant_is_in_one_pack(every: list[VariantCost]) -> None:
    packs = pack(every, RULES, threads=2)
    placed = [identity for each in packs for identity in each.identities]
    assert sorted(placed) == sorted(each.identity for each in every)
    assert len({each.name for each in packs}) == len(packs)


@given(costs)
def test_no_pack_holds_more_than_it_may(every: list[VariantCost]) -> None:
    by_identity = {each.identity: each for each in every}
    for each in pack(every, RULES, threads=1):
        together = [by_identity[identity] for identity in each.identities]
        if len(together) > 1:
            assert sum(one.graph_bytes or 0 for one in together) <= RULES.shared_bytes
            assert not any(one.alone for one in together)
            assert all(one.shares or (one.batch_ms is not None and one.batch_ms <= 20.0) for one in together)


@given(st.lists(small, max_size=12))
def test_small_variants_take_no_more_packs_than_need_be(sizes: list[tuple[float, int]]) -> None:
    every = [VariantCost(("m", str(n), "dense"), milliseconds, size) for n, (milliseconds, size) in enumerate(sizes)]
    packs = pack(every, RULES, threads=1)
    held = [sum(sizes[int(version)][1] for _, version, _ in each.identities) for each in packs]
    # First fit: no two packs are so empty that one could hold both.
    assert all(one + other > RULES.shared_bytes for n, one in enumerate(held) for other in held[n + 1 :])


@given(costs, st.randoms())
def test_which_variants_share_does_not_depend_on_time_or_chance(every: list[VariantCost], random: object) -> None:
    assert pack(every, RULES, threads=1) == pack(list(every), RULES, threads=1)
