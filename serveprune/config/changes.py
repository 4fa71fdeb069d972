"""What differs between two configs, and what that means for a server that runs with the first of them. Pure.

Files are known by their names only: one whose content changed under its name makes no difference here, and one that
only has another name counts as another one.
"""

from collections.abc import Iterable, Iterator, Mapping

from serveprune.config.change import Change, ConfigChanges, TierName, change_of
from serveprune.config.differences import DifferenceKind, differences
from serveprune.config.model_changes import changes_of_model, tiers_of_entry
from serveprune.config.problem import KeyPath
from serveprune.config.root import ServePruneConfig


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
    tiers = [tier for name, entry in new.models.items() for tier in tiers_of_entry(name, entry)]
    return ConfigChanges(
        changes,
        touched=frozenset(
            (tier.model, tier.version or new.models[tier.model].version, tier.tier) for tier in built | loaded
        ),
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
            yield Change(path, DifferenceKind.ADDED, None, after, built=tuple(tiers_of_entry(name, after)))
        else:
            yield from changes_of_model(name, before, after)


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
                    yield change_of(
                        difference, loaded=kept, note="judged anew by what was measured" if kept else unused
                    )
                else:
                    yield change_of(difference, built=kept, note=unused)


def _tiers_of(profile: str, config: ServePruneConfig) -> tuple[TierName, ...]:
    return tuple(
        tier for name, entry in config.models.items() for tier in tiers_of_entry(name, entry) if tier.tier == profile
    )


def _of_deployments(old: ServePruneConfig, new: ServePruneConfig) -> Iterator[Change]:
    # That of a model that is gone goes with it.
    for name in new.models:
        before, after = old.deployment(name), new.deployment(name)
        for difference in differences(before, after, path=("deployments", name)):
            if difference.path[-1] == "default_tier" and not (before.names_default_tier or after.names_default_tier):
                continue  # it follows from what else has changed
            if name in old.models:
                yield change_of(difference)
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
            yield change_of(difference, needs_restart=True, note=_RESTART_NOTES.get(difference.path, ""))


def _names(old: Iterable[str], new: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*old, *new]))
