import threading
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from serveprune.config.model import DENSE, ModelConfig
from serveprune.errors import NotFound
from serveprune.models.instance import Instance
from serveprune.models.variant import Variant
from serveprune.preprocessing.protocol import Preprocessor
from serveprune.scheduling.urgency import DEFAULT_PRIORITY


class Model:
    """A registered model and its variants. Reads take no lock: the table of variants is replaced whole."""

    def __init__(self, name: str, config: ModelConfig, *, default_tier: str, priority: int = DEFAULT_PRIORITY) -> None:
        self.name = name
        self.config = config
        self.version = config.version
        self.default_tier = default_tier
        self.priority = priority
        self.preprocessor: Preprocessor | None = None
        self._lock = threading.Lock()
        self._variants: Mapping[str, Variant] = MappingProxyType({tier: Variant(tier) for tier in config.tiers})

    @property
    def variants(self) -> Mapping[str, Variant]:
        """Variants by tier, in the order of the config: from best to smallest."""
        return self._variants

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

    def serving(self, tier: str) -> Variant | None:
        """Return the variant that serves requests for a tier: itself if it is ready, else the nearest better one.

        Tiers are listed from best to smallest, so the nearest better one is the closest before it that is ready.

        Raises:
            NotFound: The model has no such tier.
        """
        self.variant(tier)
        variants = list(self._variants.values())
        nearest_first = reversed(variants[: list(self._variants).index(tier) + 1])
        return next((variant for variant in nearest_first if variant.instance is not None), None)

    def update(self, tier: str, **changes: Any) -> Variant:
        """Replace the named fields of a variant, and return the new one."""
        with self._lock:
            variant = replace(self._variants[tier], **changes)
            self._variants = MappingProxyType({**self._variants, tier: variant})
        return variant

    @property
    def any_instance(self) -> Instance | None:
        """A loaded variant, whichever; all take and give the same."""
        return next((variant.instance for variant in self._variants.values() if variant.instance is not None), None)

    @property
    def is_settled(self) -> bool:
        """Whether every variant serves, was refused, or failed."""
        return all(variant.state.is_settled for variant in self._variants.values())

    @property
    def is_ready(self) -> bool:
        """Whether requests that name no tier can be answered."""
        return self.serving(self.default_tier) is not None


class Registry:
    """The models of one server, by name."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = dict(models)

    def get(self, name: str, *, version: str | None = None) -> Model:
        """Return a model.

        Raises:
            NotFound: No model of that name, or not in that version; the message lists what there is.
        """
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise NotFound(f"no model named {name!r} is registered; registered: {known}")
        if version and version != model.version:
            raise NotFound(f"model {name} has no version {version!r}; it has: {model.version}")
        return model

    def models(self) -> list[Model]:
        """Return all models in the order of the config."""
        return list(self._models.values())
