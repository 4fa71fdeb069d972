from collections.abc import Iterable, Mapping

_LEAD_SECONDS = 0.1
"""Compute time that a model may have had more than its share: within it, urgency decides."""


class FairShare:
    """Divides compute time among the models that have work waiting, by weight.

    Start-time fair queueing (Goyal et al., SIGCOMM 1996): each model has a virtual time, the seconds it was computed
    for divided by its weight. A model that comes back from idleness starts where the others are, so that nobody
    saves up. Not thread-safe; no clock.
    """

    def __init__(self, weights: Mapping[str, float], *, lead_seconds: float = _LEAD_SECONDS) -> None:
        """Name the weights.

        Args:
            weights: Model -> weight, above 0; one that is not named has 1.
            lead_seconds: How far a model may be ahead and still be chosen.
        """
        self._weights = dict(weights)
        self._lead_seconds = lead_seconds
        self._virtual: dict[str, float] = {}

    def enter(self, model: str, *, others: Iterable[str]) -> None:
        """Let a model that had nothing waiting join those that have."""
        level = min((self._virtual.get(other, 0.0) for other in others), default=0.0)
        self._virtual[model] = max(self._virtual.get(model, 0.0), level)

    def charge(self, model: str, seconds: float) -> None:
        """Note compute time that a model has had; negative to take back what was noted too much."""
        self._virtual[model] = self._virtual.get(model, 0.0) + seconds / self._weights.get(model, 1.0)

    def eligible(self, models: Iterable[str]) -> list[str]:
        """Return those that are not ahead of the one behind by more than the lead."""
        virtual = {model: self._virtual.get(model, 0.0) for model in models}
        level = min(virtual.values(), default=0.0) + self._lead_seconds
        return [model for model, time in virtual.items() if time <= level]
