"""What a change of a config is, and what it takes in a server that runs."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from serveprune.config.differences import Difference, DifferenceKind
from serveprune.config.problem import KeyPath


class TierName(NamedTuple):
    """One tier of one model.

    Attributes:
        version: Of the model; ``None`` where the config does not give it several.
    """

    model: str
    tier: str
    version: str | None = None


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
        touched: All of these, by model, version and tier.
    """

    changes: tuple[Change, ...] = ()
    built: tuple[TierName, ...] = ()
    loaded: tuple[TierName, ...] = ()
    touched: frozenset[tuple[str, str, str]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def needing_restart(self) -> tuple[Change, ...]:
        """What a running server cannot take on."""
        return tuple(change for change in self.changes if change.needs_restart)


def change_of(
    difference: Difference,
    *,
    built: tuple[TierName, ...] = (),
    loaded: tuple[TierName, ...] = (),
    needs_restart: bool = False,
    note: str = "",
) -> Change:
    """Return a difference as a change, with what it takes."""
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
