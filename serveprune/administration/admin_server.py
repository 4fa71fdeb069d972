import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from serveprune.administration.administration import Administration, ConfigHost, RolloutHost
from serveprune.administration.grpc_endpoint import AdminGrpcEndpoint
from serveprune.administration.grpc_service import AdminGrpcService
from serveprune.administration.http_application import AdminHttpApplication
from serveprune.administration.refusals import Refusals
from serveprune.administration.relay import Relay
from serveprune.config.server import Address, AdminConfig, ServerConfig
from serveprune.config.surroundings import is_loopback
from serveprune.frontends.authorization import Authorization, watched_tokens
from serveprune.frontends.certificates import watched_certificate
from serveprune.frontends.http.connection import NoDirectAnswers
from serveprune.frontends.http.endpoint import HttpEndpoint
from serveprune.frontends.watched_files import Reload, Watch
from serveprune.observability import metrics as series
from serveprune.observability.audit_log import AUDIT_FILE, AuditLog
from serveprune.observability.metrics import Metrics

_log = logging.getLogger(__name__)

TOKENS = "admin_tokens"
CERTIFICATE = "admin_certificate"
"""Names in logs and metrics of what is watched here."""

_WORKERS = 4
_DRAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class AdminEndpoints:
    """Where the admin API listens, real ports included."""

    http: Address
    grpc: Address


class AdminServer:
    """The admin API over HTTP and gRPC, on ports of its own, in the process that the config is read in.

    Attributes:
        relay: Answers the same calls where they come another way.
    """

    def __init__(
        self,
        admin: AdminConfig,
        rollout_host: RolloutHost,
        config_host: ConfigHost,
        *,
        server: ServerConfig,
        store: Path,
        metrics: Metrics,
        environment: Mapping[str, str],
    ) -> None:
        """Read tokens and certificate; nothing listens yet.

        Args:
            admin: Addresses and tokens.
            rollout_host: Where rollouts run.
            config_host: Reads the config again.
            server: Limits of what clients may take, and TLS.
            store: The artifact store's folder, which the audit log lies in.
            metrics: Count requests, and changes of tokens and certificate.
            environment: Holds the variable with tokens, if the config names one.

        Raises:
            FailedPrecondition: Tokens or certificate cannot be read or used.
        """
        self._admin = admin
        self._is_encrypted = server.tls is not None
        tokens = watched_tokens(admin.tokens, environment=environment, setting="server.admin.tokens", name=TOKENS)
        certificate = watched_certificate(server.tls, name=CERTIFICATE) if server.tls is not None else None
        audit = AuditLog(store / AUDIT_FILE)
        administration = Administration(rollout_host, config_host, audit=audit, metrics=metrics)
        authorization, refusals = Authorization(tokens), Refusals(audit)
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="admin")
        application = AdminHttpApplication(
            administration,
            authorization,
            refusals,
            workers=self._workers,
            body_timeout_seconds=server.body_timeout_seconds,
        )
        self.relay = Relay(application)
        self._http = HttpEndpoint(
            application, NoDirectAnswers(), setting="server.admin.http", limits=server, certificate=certificate
        )
        service = AdminGrpcService(administration, authorization, refusals)
        self._grpc = AdminGrpcEndpoint(service, limits=server, certificate=certificate)
        reloads = {
            (what, outcome): metrics.counter(series.SECURITY_RELOADS, what, outcome)
            for what in (TOKENS, CERTIFICATE)
            for outcome in Reload
        }
        self._watch = Watch(
            [tokens] if certificate is None else [tokens, certificate],
            on_reload=lambda what, outcome: reloads[what, outcome].inc(),
        )

    def start(self) -> AdminEndpoints:
        """Listen on both ports.

        Raises:
            FailedPrecondition: An address cannot be bound; nothing is left running.
        """
        try:
            endpoints = AdminEndpoints(self._http.start(self._admin.http), self._grpc.start(self._admin.grpc))
        except BaseException:
            self.stop()
            raise
        self._watch.start()
        for address in (endpoints.http, endpoints.grpc):
            if not self._is_encrypted and not is_loopback(address.host):
                _log.warning(
                    "the admin API listens on %s without TLS: its tokens can be read on the way; set server.tls, or "
                    "have server.admin listen on 127.0.0.1 only",
                    address,
                )
        return endpoints

    def stop(self) -> None:
        """Answer what is in flight, and close; idempotent."""
        self._watch.stop()
        self.relay.stop()
        self._http.stop(drain_seconds=_DRAIN_SECONDS)
        self._grpc.stop(drain_seconds=_DRAIN_SECONDS)
        self._workers.shutdown(wait=False, cancel_futures=True)
