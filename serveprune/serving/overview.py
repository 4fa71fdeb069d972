"""How a server stands, as the one document that its page shows."""

from collections.abc import Sequence
from typing import Any

from serveprune.errors import ServePruneError
from serveprune.models.registry import Model, Registry
from serveprune.observability.live_series import LiveSeries
from serveprune.oip.json_documents import model_metadata_document, server_metadata_document
from serveprune.rollouts.rollouts import Rollouts
from serveprune.serving.controlplane import ControlPlane
from serveprune.serving.dataplane import DataPlane

_SHOWN_CHANGES = 20


class Overview:
    """Puts together what models, series, rollouts and the config file say of themselves. Thread-safe.

    Attributes:
        has_operators: Whether operators may act through the page.
    """

    def __init__(
        self,
        registry: Registry,
        controlplane: ControlPlane,
        dataplane: DataPlane,
        live: LiveSeries,
        *,
        rollouts: Rollouts | None,
        processes: int,
        has_operators: bool,
    ) -> None:
        """Remember whom to ask.

        Args:
            registry: Of the models that are served.
            controlplane: Tells how their tiers stand.
            dataplane: Tells what they take.
            live: What was counted.
            rollouts: Those of this process; ``None`` where a supervisor has them, and tells.
            processes: That serve.
            has_operators: Whether operators may act through the page.
        """
        self._registry = registry
        self._controlplane = controlplane
        self._dataplane = dataplane
        self._live = live
        self._rollouts = rollouts
        self._processes = processes
        self.has_operators = has_operators
        self._told_rollouts: tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]] = ((), ())
        self._config: dict[str, Any] | None = None

    def tell_config(self, document: dict[str, Any]) -> None:
        """Take note of what became of the config file, ready for JSON."""
        self._config = document

    def tell_rollouts(self, rollouts: Sequence[dict[str, Any]], changes: Sequence[dict[str, Any]]) -> None:
        """Take note of how the rollouts stand that a supervisor runs, and of what happened to them."""
        self._told_rollouts = (rollouts, changes)

    def document(self) -> dict[str, Any]:
        """Return how everything stands, ready for JSON."""
        rollouts, changes = self._told_rollouts
        if self._rollouts is not None:
            rollouts, changes = self._rollouts.status(), self._rollouts.changes()
        return {
            "server": server_metadata_document(self._dataplane.server_metadata()),
            "ready": self._dataplane.ready(),
            "processes": self._processes,
            "models": [self._described(model) for model in self._registry.models()],
            "live": self._live.document(),
            "rollouts": list(rollouts),
            "changes": list(changes)[-_SHOWN_CHANGES:],
            "config": self._config,
            "operators": self.has_operators,
        }

    def _described(self, model: Model) -> dict[str, Any]:
        try:
            metadata = model_metadata_document(self._dataplane.model_metadata(model.name, version=model.version))
        except ServePruneError:  # it is being imported, or has gone just now
            metadata = None
        return {
            **self._controlplane.describe(model),
            "is_current": self._registry.find_current(model.name) is model,
            "metadata": metadata,
            "takes": model.preprocessor.kind if model.preprocessor is not None else None,
        }
