"""What operators may ask of a running server, whatever the protocol."""

import logging
from typing import Any, Protocol

from serveprune.administration.operation import UNKNOWN, AdminOperation
from serveprune.administration.operator import Operator
from serveprune.administration.reload_document import config_digest, rejection, reload_document
from serveprune.config.root import ServePruneConfig
from serveprune.errors import Code, NotFound, ServePruneError
from serveprune.observability import metrics as series
from serveprune.observability.audit_log import AuditEvent, AuditLog
from serveprune.observability.metrics import Metrics
from serveprune.reloading.reloader import Reload
from serveprune.rollouts.rollouts import Rollouts

_log = logging.getLogger(__name__)

_OK = "OK"


class RolloutHost(Protocol):
    """Where rollouts run: in a server of one process, or in the supervisor of several."""

    @property
    def rollouts(self) -> Rollouts | None:
        """All of them; ``None`` where none can run."""
        ...

    def look_now(self) -> None:
        """Have requests spread as the rollouts say now; an operator may have said something."""
        ...


class ConfigHost(Protocol):
    """What keeps a server at what its config file says; see `Reloader`."""

    config: ServePruneConfig
    last: Reload

    def reload(self) -> Reload:
        """Read the file again, and serve what it says if nothing is wrong with it."""
        ...


class Administration:
    """Answers operators, and notes in the audit log what they changed. Thread-safe; a reload takes seconds."""

    def __init__(
        self, rollout_host: RolloutHost, config_host: ConfigHost, *, audit: AuditLog, metrics: Metrics
    ) -> None:
        self._rollout_host = rollout_host
        self._config_host = config_host
        self._audit = audit
        self._metrics = metrics
        for operation in (*AdminOperation, UNKNOWN):
            for code in (_OK, *Code):
                metrics.counter(series.ADMIN_REQUESTS, operation, code)

    def config(self) -> dict[str, Any]:
        """Return what became of the config file the last time it was read, ready for JSON."""
        return self._described(self._config_host.last)

    def reload(self, operator: Operator, *, peer: str) -> tuple[dict[str, Any], ServePruneError | None]:
        """Read the config file again; return how that ended, ready for JSON, and the error if it was rejected."""
        reload = self._config_host.reload()
        error = rejection(reload)
        message = str(reload.outcome) if error is None else error.message
        self._note(AdminOperation.RELOAD, None, operator, peer=peer, error=error, message=message)
        return self._described(reload), error

    def rollouts(self) -> dict[str, Any]:
        """Return how all rollouts stand, ready for JSON."""
        rollouts = self._rollout_host.rollouts
        return {"rollouts": [] if rollouts is None else rollouts.status()}

    def rollout(self, model: str) -> dict[str, Any]:
        """Return how the rollout of a model stands, ready for JSON.

        Raises:
            NotFound: It has none.
        """
        (status,) = self._existing(model).status(model)
        return status

    def changes(self) -> dict[str, Any]:
        """Return what happened to rollouts lately, the oldest first, ready for JSON."""
        rollouts = self._rollout_host.rollouts
        lines = [] if rollouts is None else rollouts.changes()
        return {"changes": [{key: value for key, value in line.items() if key != "event"} for line in lines]}

    def act(self, operation: AdminOperation, model: str, operator: Operator, *, peer: str) -> dict[str, Any]:
        """Move the rollout of a model, and return how it stands then, ready for JSON.

        Args:
            operation: One of `ACTS`.
            model: Its name.
            operator: Who asks.
            peer: From where.

        Raises:
            NotFound: It has none.
            FailedPrecondition: It does not fit how the rollout stands.
        """
        try:
            standing = self._existing(model).act(model, operation.action, who=operator.who, why=operator.why)
        except ServePruneError as error:
            self._note(operation, model, operator, peer=peer, error=error, message=error.message)
            raise
        self._note(operation, model, operator, peer=peer, error=None, message=standing["reason"])
        self._rollout_host.look_now()
        return standing

    def count(self, operation: AdminOperation | None, error: ServePruneError | Code | None) -> None:
        """Count a request, whatever came of it."""
        code = error if isinstance(error, Code) or error is None else error.code
        self._metrics.counter(series.ADMIN_REQUESTS, str(operation or UNKNOWN), str(code or _OK)).inc()

    def _existing(self, model: str) -> Rollouts:
        rollouts = self._rollout_host.rollouts
        if rollouts is None:
            raise NotFound(f"no rollout of a model named {model!r}: this server runs none")
        return rollouts

    def _described(self, reload: Reload) -> dict[str, Any]:
        return reload_document(reload, digest=config_digest(self._config_host.config))

    def _note(
        self,
        operation: AdminOperation,
        model: str | None,
        operator: Operator,
        *,
        peer: str,
        error: ServePruneError | None,
        message: str,
    ) -> None:
        code = _OK if error is None else str(error.code)
        fields = {
            "operation": str(operation),
            "model": model,
            "who": operator.who,
            "why": operator.why,
            "peer": peer,
            "code": code,
            "message": message,
        }
        self._audit.add(AuditEvent.REQUEST, fields)
        level = logging.INFO if error is None else logging.WARNING
        subject = str(operation) if model is None else f"{operation} {model!r}"
        _log.log(level, "admin: %s by %r from %s: %s", subject, operator.who, peer, code)
