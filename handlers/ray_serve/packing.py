"""Which variants share a replica, and what a replica asks Ray for (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Identity = tuple[str, str, str]
"""Model, version and tier."""


@dataclass(frozen=True, slots=True)
class VariantCost:
    """What is known of a variant before it is loaded.

    Attributes:
        batch_ms: Of the batch that was timed at its build; ``None`` where nothing was measured yet.
        graph_bytes: Of its file; ``None`` where there is none yet.
        alone: It scales in a way of its own, so it shares nothing.
        shares: The operator says that it is small, whatever was measured.
    """

    identity: Identity
    batch_ms: float | None = None
    graph_bytes: int | None = None
    alone: bool = False
    shares: bool = False


@dataclass(frozen=True, slots=True)
class PackingRules:
    """See `settings.PackingSettings`."""

    small_batch_ms: float
    small_bytes: int
    shared_bytes: int
    process_bytes: int
    bytes_per_graph_byte: float


@dataclass(frozen=True, slots=True)
class Pack:
    """The variants of one deployment: each of its replicas has all of them.

    Attributes:
        name: Of the deployment.
        num_cpus: Of a replica, which computes one batch at a time.
        memory_bytes: Of a replica; ``None`` where a graph's size is not known, and Ray is asked for none.
    """

    name: str
    identities: tuple[Identity, ...]
    num_cpus: int
    memory_bytes: int | None


def pack(costs: Iterable[VariantCost], rules: PackingRules, *, threads: int) -> list[Pack]:
    """Divide variants into packs.

    A small variant, whose batch is quick and whose graph is little, shares a replica with other small ones: by itself
    it would leave a process and a core idle. The largest come first, each into the first pack that has room. Any other
    variant, and one of which nothing was measured yet, has a deployment of its own, so that it scales by itself.

    Args:
        costs: No two of one variant.
        rules: What small is, and what a pack holds.
        threads: Of one batch, so cores of a replica.

    Returns:
        In the order in which their first variants came.
    """
    every = list(costs)
    order = {each.identity: index for index, each in enumerate(every)}
    shared: list[list[VariantCost]] = []
    small = [each for each in every if _is_small(each, rules)]
    for each in sorted(small, key=lambda one: (-_bytes(one), order[one.identity])):
        room = (group for group in shared if _bytes(each) + sum(map(_bytes, group)) <= rules.shared_bytes)
        group = next(room, None)
        if group is None:
            shared.append([each])
        else:
            group.append(each)
    groups = [*shared, *([each] for each in every if not _is_small(each, rules))]
    for group in groups:
        group.sort(key=lambda one: order[one.identity])
    groups.sort(key=lambda group: order[group[0].identity])
    names = _names(groups)
    return [
        Pack(name, tuple(each.identity for each in group), threads, _memory_bytes(group, rules))
        for name, group in zip(names, groups, strict=True)
    ]


def _is_small(cost: VariantCost, rules: PackingRules) -> bool:
    if cost.alone or cost.shares:
        return cost.shares and not cost.alone
    if cost.batch_ms is None or cost.graph_bytes is None:
        return False
    return cost.batch_ms <= rules.small_batch_ms and cost.graph_bytes <= min(rules.small_bytes, rules.shared_bytes)


def _bytes(cost: VariantCost) -> int:
    return cost.graph_bytes or 0


def _memory_bytes(group: Sequence[VariantCost], rules: PackingRules) -> int | None:
    if any(each.graph_bytes is None for each in group):
        return None
    return rules.process_bytes + round(rules.bytes_per_graph_byte * sum(map(_bytes, group)))


def _names(groups: Sequence[Sequence[VariantCost]]) -> list[str]:
    """Name a deployment by its variant, or `shared`; the version is said where a tier has several."""
    versions: dict[tuple[str, str], int] = {}
    for group in groups:
        for model, _, tier in (each.identity for each in group):
            versions[model, tier] = versions.get((model, tier), 0) + 1
    names, count = [], 0
    for group in groups:
        model, version, tier = group[0].identity
        if len(group) > 1:
            count += 1
            names.append(f"shared-{count}")
        else:
            names.append(f"{model}@{tier}" if versions[model, tier] == 1 else f"{model}:{version}@{tier}")
    return names
