import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from serveprune.config.model import DENSE, ModelConfig
from serveprune.config.versions import version_order
from serveprune.errors import NotFound
from serveprune.models.instance import Instance
from serveprune.models.variant import Variant, VariantState
from serveprune.preprocessing.protocol import Preprocessor
from serveprune.scheduling.urgency import DEFAULT_PRIORITY


class Model:
    """A registered model and its variants. Reads take no lock: the tables of variants are replaced whole.

    Attributes:
        config: What it is, or is on the way to be.
        default_tier: Serves requests that name none.
        priority: Of requests that name none.
        key: Name and version.
        content: What its files were like, where they may change under their names; else nothing.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        *,
        default_tier: str,
        priority: int = DEFAULT_PRIORITY,
        content: str = "",
    ) -> None:
        self.name = name
        self.content = content
        self.config = config
        self.version = config.version
        self.key = (name, config.version)
        self.default_tier = default_tier
        self.priority = priority
        self.preprocessor: Preprocessor | None = None
        self._lock = threading.Lock()
        self._variants: Mapping[str, Variant] = MappingProxyType({tier: Variant(tier) for tier in config.tiers})
        self._renewals: Mapping[str, Variant] = MappingProxyType({})
        self._revision = 0

    @property
    def variants(self) -> Mapping[str, Variant]:
        """Variants by tier, in the order of the config: from best to smallest."""
        return self._variants

    @property
    def renewals(self) -> Mapping[str, Variant]:
        """Tier -> the variant that takes the place of the one that serves, once it is ready.

        Nothing is routed to it before; where it fails or is refused, the present one goes on serving.
        """
        return self._renewals

    @property
    def dense(self) -> Variant:
        """The tier with no pass applied."""
        return self._variants[DENSE]

    def variant(self, tier: str) -> Variant:
        """Return one variant.

        Raises:
            NotFound: The model has no such tier; the message lists those it has.
        """
        variant = self._variants.get(tier)
        if variant is None:
            raise NotFound(f"model {self.name} has no tier {tier!r}; it has: {', '.join(self._variants)}")
        return variant

    def serving(self, tier: str, *, withheld: str | None = None) -> Variant | None:
        """Return the variant that serves requests for a tier: itself if it is ready, else the nearest better one.

        Tiers are listed from best to smallest, so the nearest better one is the closest before it that is ready.

        Args:
            tier: That is asked for.
            withheld: A tier that stands in for no other.

        Raises:
            NotFound: The model has no such tier.
        """
        self.variant(tier)
        variants = list(self._variants.values())
        nearest_first = reversed(variants[: list(self._variants).index(tier) + 1])
        may_serve = (variant for variant in nearest_first if variant.tier == tier or variant.tier != withheld)
        return next((variant for variant in may_serve if variant.instance is not None), None)

    def pending(self, tier: str) -> Variant | None:
        """Return what is, or was last, brought up for a tier: its renewal, if it has one; ``None`` without the tier."""
        return self._renewals.get(tier) or self._variants.get(tier)

    def update(self, tier: str, *, revision: int | None = None, **changes: Any) -> Variant | None:
        """Replace the named fields of the variant that is brought up for a tier, and return the new one.

        A renewal takes the place of the variant it renews when it is ready, or is refused where that has the same
        artifact; what served until then is retired.

        Args:
            tier: Of the variant.
            revision: Do nothing, and return ``None``, if the tier has gone, or is to be another by now.
            **changes: Fields of `Variant`.
        """
        replaced = None
        with self._lock:
            renewal, present = self._renewals.get(tier), self._variants.get(tier)
            pending = renewal or present
            if pending is None or present is None or (revision is not None and pending.revision != revision):
                return None
            variant = replace(pending, **changes)
            if renewal is not None and not _takes_over(variant, present):
                self._renewals = MappingProxyType({**self._renewals, tier: variant})
                return variant
            if renewal is not None:
                replaced = present.instance
                self._renewals = MappingProxyType({name: one for name, one in self._renewals.items() if name != tier})
            self._variants = MappingProxyType({**self._variants, tier: variant})
        if replaced is not None and replaced is not variant.instance:
            replaced.retire()
        return variant

    def revise(
        self, config: ModelConfig, *, default_tier: str, priority: int, changed: Collection[str]
    ) -> list[Instance]:
        """Become what another config says, which must leave the dense graph as it is.

        Args:
            config: Of the same source and version.
            default_tier: See `Model`.
            priority: See `Model`.
            changed: Tiers to bring up anew, besides those that are new: such as serve go on until then.

        Returns:
            What served tiers that are gone, to be retired when nobody can be on the way to it any more.
        """
        with self._lock:
            variants, renewals, gone = {}, {}, []
            for tier in config.tiers:
                present = self._variants.get(tier)
                if present is None or (tier in changed and present.instance is None):
                    variants[tier] = Variant(tier, revision=self._next_revision())
                    continue
                variants[tier] = present
                if tier in changed:
                    renewals[tier] = Variant(tier, revision=self._next_revision())
                elif tier in self._renewals:
                    renewals[tier] = self._renewals[tier]
            for tier, variant in self._variants.items():
                if tier not in variants and variant.instance is not None:
                    gone.append(variant.instance)
            self.config, self.default_tier, self.priority = config, default_tier, priority
            self._variants, self._renewals = MappingProxyType(variants), MappingProxyType(renewals)
        return gone

    def _next_revision(self) -> int:
        self._revision += 1
        return self._revision

    @property
    def any_instance(self) -> Instance | None:
        """A loaded variant, whichever; all take and give the same."""
        for variant in self._variants.values():
            if variant.instance is not None:
                return variant.instance
        return None

    @property
    def is_settled(self) -> bool:
        """Whether every variant, and every renewal of one, is ready, was refused, or failed."""
        variants = {**self._variants, **self._renewals}
        return all(variant.state.is_settled for variant in variants.values())

    @property
    def is_ready(self) -> bool:
        """Whether requests that name no tier can be answered."""
        return self.serving(self.default_tier) is not None


def _takes_over(renewal: Variant, present: Variant) -> bool:
    if renewal.state is VariantState.REFUSED:
        # What a gate refuses never serves, and this is what serves.
        return renewal.artifact is not None and renewal.artifact.key == getattr(present.artifact, "key", None)
    return renewal.state is VariantState.READY


class Registry:
    """The models of one server, by name and version. Thread-safe: the tables are replaced whole.

    Requests that name no version get the highest one that is ready. One that serves goes on until a higher one is ready
    with all its tiers (each ready, refused or failed), so that nobody who asks for a tier is served by a stand-in
    meanwhile.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._versions: Mapping[str, Mapping[str, Model]] = {}
        self._current: dict[str, Model] = {}
        self.replace(models)

    def replace(self, models: Iterable[Model]) -> None:
        """Have other models from now on; no two of one name and version."""
        versions: dict[str, dict[str, Model]] = {}
        for model in models:
            versions.setdefault(model.name, {})[model.version] = model
        self._versions = {
            name: dict(sorted(each.items(), key=lambda item: version_order(item[0]))) for name, each in versions.items()
        }
        self.refresh()

    def refresh(self) -> None:
        """Find anew which version requests get that name none; to be called when a variant has changed."""
        self._current = {
            name: _current(self._current.get(name), list(versions.values()))
            for name, versions in self._versions.items()
        }

    def find(self, name: str, version: str) -> Model | None:
        """Return a version of a model, if there is one."""
        return self._versions.get(name, {}).get(version)

    def get(self, name: str, *, version: str | None = None) -> Model:
        """Return a version of a model, by default the one that requests get which name none.

        Raises:
            NotFound: No model of that name, or not in that version; the message lists what there is.
        """
        model = self._current.get(name)
        if model is None:
            known = ", ".join(sorted(self._current)) or "none"
            raise NotFound(f"no model named {name!r} is registered; registered: {known}")
        if version and version != model.version:
            versions = self._versions.get(name, {})
            if version not in versions:
                raise NotFound(f"model {name} has no version {version!r}; it has: {', '.join(versions)}")
            return versions[version]
        return model

    def find_current(self, name: str) -> Model | None:
        """Return the version of a model that requests get which name none, if there is such a model."""
        return self._current.get(name)

    def versions(self, name: str) -> list[Model]:
        """Return all versions of a model, the lowest first; none where there is no such model."""
        return list(self._versions.get(name, {}).values())

    def current(self) -> list[Model]:
        """Return of each model the version that requests get which name none, in the order of the config."""
        return list(self._current.values())

    def models(self) -> list[Model]:
        """Return all models in the order of the config, of each the lowest version first."""
        return [model for versions in self._versions.values() for model in versions.values()]


def _current(former: Model | None, versions: Sequence[Model]) -> Model:
    """Choose among the versions of a model, the lowest first; the former one serves until a better one is complete."""
    ready = [model for model in versions if model.is_ready]
    if former is not None and former not in versions:
        # Another model may have its version now.
        former = next((model for model in versions if model.version == former.version), None)
    if not ready:
        return versions[-1] if former is None else former
    if former not in ready:
        return ready[-1]
    complete = [model for model in ready if model.is_settled]
    return max([former, *complete], key=versions.index)
