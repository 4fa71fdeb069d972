"""What differs between two entries of one model, in one version or several. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from serveprune.config.change import Change, TierName, change_of
from serveprune.config.differences import DifferenceKind, differences
from serveprune.config.model import DENSE, ModelConfig, ModelEntry
from serveprune.config.problem import KeyPath
from serveprune.config.versions import version_order

_GOES = "requests in flight are answered before it goes"


def changes_of_model(name: str, old: ModelEntry, new: ModelEntry) -> Iterator[Change]:
    """Yield what differs between what is registered under one name before and after."""
    if old.versions or new.versions:
        yield from _of_versions(name, old, new)
    else:
        yield from _of_one_version(name, old, new)


def tiers_of_entry(name: str, entry: ModelEntry) -> Iterator[TierName]:
    """Yield the tiers of all versions that are served."""
    for version in entry.served:
        yield from (TierName(name, tier, version if entry.versions else None) for tier in entry.tiers)


def _of_one_version(name: str, old: ModelEntry, new: ModelEntry) -> Iterator[Change]:
    before, after = old.by_version[old.version], new.by_version[new.version]
    for difference in differences(before, after, path=("models", name)):
        setting = difference.path[2]
        if setting == "tiers":
            yield from _of_tiers(name, old.tiers, new.tiers, versions=[None])
            continue
        built, loaded = _tiers_touched(str(setting), before, after)
        yield change_of(
            difference,
            built=tuple(TierName(name, tier) for tier in built),
            loaded=tuple(TierName(name, tier) for tier in loaded),
            note="" if built or loaded or len(new.tiers) > 1 else f"nothing of {DENSE}, its only tier, depends on it",
        )


def _tiers_touched(setting: str, old: ModelConfig, new: ModelConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which tiers of a model a changed setting has built anew, and which loaded anew.

    The first follows what the recipes of `serveprune/artifacts/key.py` are made of. Tiers that come are a change of
    their own.
    """
    every = tuple(tier for tier in new.tiers if tier in old.tiers)
    compressed = tuple(tier for tier in every if tier != DENSE)
    match setting:
        case "task" | "calibration" | "evaluation":
            return compressed, ()
        case "backend":
            # Dense is the same graph on every backend, and stays with ONNX Runtime under `auto`.
            return compressed, (DENSE,) if "openvino" in (old.backend, new.backend) else ()
        case "version" | "max_batch_size" | "max_batch_elements" | "max_queue_delay_ms":
            return (), every
        case _:
            # `source` and `preprocessing` make another dense graph, of which the tiers are made. What is not known
            # here is taken for no less.
            return every, ()


def _of_tiers(
    model: str, old: tuple[str, ...], new: tuple[str, ...], *, versions: Iterable[str | None]
) -> Iterator[Change]:
    path: KeyPath = ("models", model, "tiers")
    for tier in old:
        if tier not in new:
            yield Change(path, DifferenceKind.REMOVED, tier, None)
    for tier in new:
        if tier not in old:
            yield Change(
                path,
                DifferenceKind.ADDED,
                None,
                tier,
                built=tuple(TierName(model, tier, version) for version in versions),
            )
    if [tier for tier in old if tier in new] != [tier for tier in new if tier in old]:
        note = "their order says which one stands in for another"
        yield Change(path, DifferenceKind.CHANGED, old, new, note=note)


def _of_versions(name: str, old: ModelEntry, new: ModelEntry) -> Iterator[Change]:
    served_before, served_after = old.served, new.served
    of_policy = _of_policy(name, old, new)
    changes = [
        *_of_each_version(name, old, new),
        *of_policy,
        *_of_all_versions(name, old, new),
    ]
    # That the highest version is another one changes which are served, though the policy is the same.
    known = old.by_version.keys() & new.by_version.keys()
    back = [version for version in served_after if version in known and version not in served_before]
    out = [version for version in served_before if version in known and version not in served_after]
    if changes and not of_policy and (back or out):
        notes = [changes[0].note, _served_again(back), _no_longer_served(out)]
        built = (*changes[0].built, *_all_tiers(name, new, back))
        changes[0] = replace(changes[0], built=built, note="; ".join(filter(None, notes)))
    yield from changes


def _of_each_version(name: str, old: ModelEntry, new: ModelEntry) -> Iterator[Change]:
    said_before, said_after = old.said_of_versions(), new.said_of_versions()
    for version in sorted({*said_before, *said_after}, key=version_order):
        path: KeyPath = ("models", name, "versions", version)
        before, after = said_before.get(version), said_after.get(version)
        if after is None:
            note = _GOES if version in old.served else "it was not served"
            yield Change(path, DifferenceKind.REMOVED, before, None, note=note)
        elif before is None:
            built = _all_tiers(name, new, [version] if version in new.served else [])
            note = "" if built else "version_policy does not have it served"
            yield Change(path, DifferenceKind.ADDED, None, after, built=built, note=note)
        else:
            for difference in differences(before, after, path=path):
                touched = _touched(name, str(difference.path[4]), old, new, versions=[version])
                yield change_of(difference, **touched)


def _of_policy(name: str, old: ModelEntry, new: ModelEntry) -> list[Change]:
    if old.version_policy == new.version_policy:
        return []
    known = old.by_version.keys() & new.by_version.keys()
    back = [version for version in new.served if version in known and version not in old.served]
    out = [version for version in old.served if version in known and version not in new.served]
    return [
        Change(
            ("models", name, "version_policy"),
            DifferenceKind.CHANGED,
            old.version_policy,
            new.version_policy,
            built=_all_tiers(name, new, back),
            note=_no_longer_served(out),
        )
    ]


def _of_all_versions(name: str, old: ModelEntry, new: ModelEntry) -> Iterator[Change]:
    """Yield what changes for all versions that do not say otherwise themselves."""
    for difference in differences(old, new, path=("models", name)):
        setting = str(difference.path[2])
        if setting == "tiers":
            both = [version for version in new.served if version in old.served]
            yield from _of_tiers(name, old.tiers, new.tiers, versions=both)
        elif setting not in ("source", "version", "versions", "version_policy"):
            yield change_of(difference, **_touched(name, setting, old, new, versions=list(new.served)))


def _touched(name: str, setting: str, old: ModelEntry, new: ModelEntry, *, versions: Iterable[str]) -> dict[str, Any]:
    """Return what a changed setting takes in those of the versions that are served before and after."""
    built: list[TierName] = []
    loaded: list[TierName] = []
    before, after = old.served, new.served
    for version in versions:
        if version not in before or version not in after:
            continue
        # A version that says this itself, and says the same as before, has nothing of what the model says.
        if getattr(before[version], setting) == getattr(after[version], setting):
            continue
        anew, again = _tiers_touched(setting, before[version], after[version])
        built += (TierName(name, tier, version) for tier in anew)
        loaded += (TierName(name, tier, version) for tier in again)
    return {"built": tuple(built), "loaded": tuple(loaded), "note": "" if built or loaded else "no tier depends on it"}


def _all_tiers(name: str, entry: ModelEntry, versions: Iterable[str]) -> tuple[TierName, ...]:
    return tuple(TierName(name, tier, version) for version in versions for tier in entry.tiers)


def _served_again(versions: list[str]) -> str:
    return f"version {', '.join(versions)} is served again" if versions else ""


def _no_longer_served(versions: list[str]) -> str:
    return f"version {', '.join(versions)} is unloaded once another one has taken over" if versions else ""
