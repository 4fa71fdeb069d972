"""What differs between two configs, and what that means for a server that runs with the first of them. Pure.

Files are known by their names only: one whose content changed under its name makes no difference here, and one that
only has another name counts as another one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from serveprune.config.differences import Difference, DifferenceKind, differences
from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.problem import KeyPath
from serveprune.config.root import ServePruneConfig


class TierName(NamedTuple):
    """One tier of one model."""

    model: str
    tier: str


class Consequence(StrEnum):
    """What a change takes, from least to most."""

    AT_ONCE = "at_once"
    """Nothing but to say so to what runs already."""
    LOAD = "load"
    """Tiers are judged, loaded and warmed anew; their artifacts are good as they are."""
    BUILD = "build"
    """New artifacts are built, judged and warmed first, but for those that the store has already."""
    RESTART = "restart"
    """It is laid down when a server starts."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change, in a setting or in what there is.

    Attributes:
        path: The key path: in the old config if it is gone from the new one, else in the new one.
        old: The validated value before; ``None`` also where there was nothing.
        new: The validated value after; ``None`` also where nothing is left.
        built: Tiers whose artifacts are others by it.
        loaded: Tiers that are judged, loaded and warmed anew, with the artifacts that they have.
        needs_restart: A running server cannot take it on.
        note: What else there is to know, in a few words.
    """

    path: KeyPath
    kind: DifferenceKind
    old: Any
    new: Any
    built: tuple[TierName, ...] = ()
    loaded: tuple[TierName, ...] = ()
    needs_restart: bool = False
    note: str = ""

    @property
    def consequence(self) -> Consequence:
        """The most that it takes."""
        if self.needs_restart:
            return Consequence.RESTART
        if self.built:
            return Consequence.BUILD
        return Consequence.LOAD if self.loaded else Consequence.AT_ONCE


@dataclass(frozen=True, slots=True)
class ConfigChanges:
    """All that differs between two configs; false when nothing does.

    Attributes:
        changes: In the order in which people read them.
        built: Tiers to be built, each once, in the order of the new config.
        loaded: Tiers to be loaded anew that need no build, likewise.
    """

    changes: tuple[Change, ...] = ()
    built: tuple[TierName, ...] = ()
    loaded: tuple[TierName, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def needing_restart(self) -> tuple[Change, ...]:
        """What a running server cannot take on."""
        return tuple(change for change in self.changes if change.needs_restart)


def config_changes(old: ServePruneConfig, new: ServePruneConfig) -> ConfigChanges:
    """Compare two configs: models, profiles, deployments, then what is of the server as a whole.

    The order of a model's tiers counts; that of keys does not, nor does it whether a default is written out.
    """
    changes = (
        *_of_models(old, new),
        *_of_profiles(old, new),
        *_of_deployments(old, new),
        *_of_sections(old, new),
    )
    built = {tier for change in changes for tier in change.built}
    loaded = {tier for change in changes for tier in change.loaded} - built
    tiers = [TierName(name, tier) for name, model in new.models.items() for tier in model.tiers]
    return ConfigChanges(
        changes,
        built=tuple(tier for tier in tiers if tier in built),
        loaded=tuple(tier for tier in tiers if tier in loaded),
    )


def _of_models(old: ServePruneConfig, new: ServePruneConfig) -> Iterator[Change]:
    for name in _names(old.models, new.models):
        path: KeyPath = ("models", name)
        before, after = old.models.get(name), new.models.get(name)
        if after is None:
            yield Change(
                path, DifferenceKind.REMOVED, before, None, note="requests in flight are answered before it goes"
            )
        elif before is None:
            yield Change(path, DifferenceKind.ADDED, None, after, built=_of_model(name, after.tiers))
        else:
            yield from _of_one_model(name, before, after)


def _of_one_model(name: str, old: ModelConfig, new: ModelConfig) -> Iterator[Change]:
    for difference in differences(old, new, path=("models", name)):
        setting = difference.path[2]
        if setting == "tiers":
            yield from _of_tiers(name, old.tiers, new.tiers)
            continue
        built, loaded = _tiers_touched(str(setting), old, new)
        yield _change(
            difference,
            built=_of_model(name, built),
            loaded=_of_model(name, loaded),
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


def _of_tiers(model: str, old: tuple[str, ...], new: tuple[str, ...]) -> Iterator[Change]:
    path: KeyPath = ("models", model, "tiers")
    for tier in old:
        if tier not in new:
            yield Change(path, DifferenceKind.REMOVED, tier, None)
    for tier in new:
        if tier not in old:
            yield Change(path, DifferenceKind.ADDED, None, tier, built=(TierName(model, tier),))
    if [tier for tier in old if tier in new] != [tier for tier in new if tier in old]:
        note = "their order says which one stands in for another"
        yield Change(path, DifferenceKind.CHANGED, old, new, note=note)


def _of_profiles(old: ServePruneConfig, new: ServePruneConfig) -> Iterator[Change]:
    for name in _names(old.profiles, new.profiles):
        path: KeyPath = ("profiles", name)
        before, after = old.profiles.get(name), new.profiles.get(name)
        tiers = _tiers_of(name, new)
        unused = "" if tiers else "no model has this tier"
        if after is None:
            yield Change(path, DifferenceKind.REMOVED, before, None)
        elif before is None:
            yield Change(path, DifferenceKind.ADDED, None, after, built=tiers, note=unused)
        else:
            kept = tuple(tier for tier in tiers if tier in _tiers_of(name, old))
            for difference in differences(before, after, path=path):
                if difference.path[2] == "gate":
                    yield _change(difference, loaded=kept, note="judged anew by what was measured" if kept else unused)
                else:
                    yield _change(difference, built=kept, note=unused)


def _tiers_of(profile: str, config: ServePruneConfig) -> tuple[TierName, ...]:
    return tuple(TierName(name, profile) for name, model in config.models.items() if profile in model.tiers)


def _of_deployments(old: ServePruneConfig, new: ServePruneConfig) -> Iterator[Change]:
    # That of a model that is gone goes with it.
    for name in new.models:
        for difference in differences(old.deployment(name), new.deployment(name), path=("deployments", name)):
            if name in old.models:
                yield _change(difference)
            else:
                yield Change(difference.path, DifferenceKind.ADDED, None, difference.new)


_RESTART_NOTES: Mapping[KeyPath, str] = {
    ("store", "path"): "what the other store lacks is built then",
    ("server", "threads_per_executor"): "tiers are measured with them, so all but dense are built anew then",
}


def _of_sections(old: ServePruneConfig, new: ServePruneConfig) -> Iterator[Change]:
    """Compare all that is handed out once when a server starts.

    Addresses are bound and threads and processes started then; front ends, admission, the store and whoever builds are
    set up with their limits, which several processes have divided among them.
    """
    for difference in differences(old, new):
        if difference.path[0] not in ("models", "profiles", "deployments"):
            yield _change(difference, needs_restart=True, note=_RESTART_NOTES.get(difference.path, ""))


def _change(
    difference: Difference,
    *,
    built: tuple[TierName, ...] = (),
    loaded: tuple[TierName, ...] = (),
    needs_restart: bool = False,
    note: str = "",
) -> Change:
    return Change(
        difference.path,
        difference.kind,
        difference.old,
        difference.new,
        built=built,
        loaded=loaded,
        needs_restart=needs_restart,
        note=note,
    )


def _of_model(model: str, tiers: Iterable[str]) -> tuple[TierName, ...]:
    return tuple(TierName(model, tier) for tier in tiers)


def _names(old: Iterable[str], new: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*old, *new]))
