from collections.abc import Iterable, Mapping
from types import MappingProxyType

_LEAD_SECONDS = 0.1
"""Compute time that a model may have had more than its share: within it, urgency decides."""


class FairShare:
    """Divides compute time among the models that have work waiting, by weight.

    Start-time fair queueing (Goyal et al., SIGCOMM 1996): each model has a virtual time, the seconds it was computed
    for divided by its weight. A model that comes back from idleness starts where the others are, so that nobody
    saves up. Not thread-safe; no clock.
    """

    def __init__(
        self, weights: Mapping[str, float] = MappingProxyType({}), *, lead_seconds: float = _LEAD_SECONDS
    ) -> None:
        """Name the weights.

        Args:
            weights: Model -> weight, above 0; one that is not named has 1.
            lead_seconds: How far a model may be ahead and still be chosen.
        """
        self._weights = dict(weights)
        self._lead_seconds = lead_seconds
        self._virtual: dict[str, float] = {}
        self._served = 0.0

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Have other weights from now on."""
        self._weights = dict(weights)

    def enter(self, model: str, *, others: Iterable[str]) -> None:
        """Let a model that had nothing waiting join those that have.

        Where none has, it starts where the last one stood when it was served: who computes has no share to catch up.
        """
        level = min((self._virtual.get(other, 0.0) for other in others), default=self._served)
        self._virtual[model] = max(self._virtual.get(model, 0.0), level)

    def charge(self, model: str, seconds: float) -> None:
        """Note the compute time that a model is given."""
        start = self._virtual.get(model, 0.0)
        self._served = max(self._served, start)
        self._virtual[model] = start + seconds / self._weight(model)

    def correct(self, model: str, seconds: float) -> None:
        """Note that a model had so much more compute time than it was charged for; negative for less."""
        self._virtual[model] = self._virtual.get(model, 0.0) + seconds / self._weight(model)

    def eligible(self, models: Iterable[str]) -> list[str]:
        """Return those that are not ahead of the one behind by more than the lead."""
        virtual = {model: self._virtual.get(model, 0.0) for model in models}
        level = min(virtual.values(), default=0.0) + self._lead_seconds
        return [model for model, time in virtual.items() if time <= level]

    def seconds_ahead(self, model: str, waiting_seconds: Mapping[str, float]) -> float:
        """Return the compute time that comes before one more job of a model.

        Its own work comes first; of the others' no more than they get beside that by their weights, and the lead
        that they may have.

        Args:
            model: It may have nothing waiting.
            waiting_seconds: Model -> compute time that waits.
        """
        own = waiting_seconds.get(model, 0.0)
        turn = own / self._weight(model) + self._lead_seconds
        return own + sum(
            min(seconds, turn * self._weight(other)) for other, seconds in waiting_seconds.items() if other != model
        )

    def _weight(self, model: str) -> float:
        return self._weights.get(model, 1.0)
