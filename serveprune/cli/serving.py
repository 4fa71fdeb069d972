"""What `serve` and `demo` share: start, show the builds, test or keep serving, drain."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape

from serveprune.administration.admin_server import AdminEndpoints, AdminServer
from serveprune.administration.reload_document import config_digest, reload_document
from serveprune.artifacts.builder import BuildProgress
from serveprune.building import builder_of
from serveprune.cli.client import url_of
from serveprune.cli.console import progress_display
from serveprune.cli.endpoints_file import endpoints_announced
from serveprune.cli.self_test import self_test
from serveprune.cli.signals import ReloadSignal, StopSignals
from serveprune.cli.stopping import leave
from serveprune.cli.telemetry import start_telemetry
from serveprune.cli.tier_table import shown_names, tier_table
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.config.surroundings import warnings_of_surroundings
from serveprune.errors import ConfigError, ServePruneError
from serveprune.frontends.http.operator_call import AskOperators
from serveprune.observability.logs import configure_logs
from serveprune.observability.metrics import Metrics
from serveprune.observability.tracing_protocol import Tracing
from serveprune.preflight import check_datasets, check_packages, check_secrets
from serveprune.reloading.config_file import ConfigFile
from serveprune.reloading.reloader import Reloader
from serveprune.repository.folder_watch import FolderWatch
from serveprune.repository.model_repository import ModelRepository
from serveprune.rollouts.rollouts import Rollouts
from serveprune.routing.tier_selection import QUALIFIER
from serveprune.server import Contents, Endpoints, Server
from serveprune.serving.loadable_models import FixedModels, LoadableModels
from serveprune.supervision.supervisor import Supervisor

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_SIGNAL_POLL_SECONDS = 0.1
_FIXED = FixedModels()
_SETTLED = ("ready", "refused", "failed")
_SERVING_PROCESS = (sys.executable, "-m", "serveprune.cli.serving_process")


class Served(Protocol):
    """A server, in this process or in several others."""

    @property
    def failure(self) -> ServePruneError | None:
        """Why it cannot go on, if so."""
        ...

    def start(self) -> Endpoints:
        """Listen, and begin to load and build."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Its own series; there once it has started."""
        ...

    @property
    def rollouts(self) -> Rollouts | None:
        """Those that it runs; ``None`` where none can run."""
        ...

    def look_now(self) -> None:
        """Have requests spread as the rollouts say now; see `Server.look_now`."""
        ...

    def apply(self, config: ServePruneConfig) -> None:
        """Serve what another config says; see `Server.apply`."""
        ...

    def tell_config(self, document: dict[str, Any]) -> None:
        """Have the page show what became of the config file; see `Overview.tell_config`."""
        ...

    def admit_operators(self, ask: AskOperators) -> None:
        """Have calls to the admin API answered that come through the page."""
        ...

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Wait until every variant serves, was refused or failed; return whether that happened in time."""
        ...

    def tiers(self) -> list[dict[str, Any]]:
        """Return how the tiers of all models stand, ready for JSON."""
        ...

    def self_test(self, endpoints: Endpoints) -> list[str]:
        """Return what is wrong with the answers of the tiers."""
        ...

    def stop(self) -> bool:
        """Drain, and return whether nothing runs any more."""
        ...


class OneProcess:
    """A server in this process."""

    failure: ServePruneError | None = None

    def __init__(
        self,
        config: ServePruneConfig,
        *,
        loadable: LoadableModels | None = None,
        contents: Contents = MappingProxyType({}),
        tracing: Tracing | None = None,
    ) -> None:
        self._server = Server(config, loadable=loadable, contents=contents, tracing=tracing)
        self.start = self._server.start
        self.stop = self._server.stop
        self.apply = self._server.apply
        self.wait_for = self._server.wait_for
        self.metrics = self._server.metrics
        self.rollouts = self._server.rollouts
        self.look_now = self._server.look_now
        self.tell_config = self._server.overview.tell_config
        self.admit_operators = self._server.operators.admit
        self.wait_settled = self._server.controlplane.wait_settled

    def tiers(self) -> list[dict[str, Any]]:
        """See `Served.tiers`."""
        return self._server.controlplane.all_tiers()

    def self_test(self, endpoints: Endpoints) -> list[str]:
        """See `Served.self_test`."""
        return self_test(self._server, endpoints)


def run(
    config_file: Path,
    read: Callable[[], ServePruneConfig],
    *,
    check: bool,
    console: Console,
    log_format: str | None = None,
    endpoints_file: Path | None = None,
    after_settling: Callable[[ServePruneConfig, Endpoints], list[str]] = lambda config, endpoints: [],
) -> int:
    """Serve until a signal comes, or with ``check`` only until every tier was tested; return the exit code.

    Args:
        config_file: Watched, and read again when it changes.
        read: Reads what to serve from it.
        check: Listen on free ports, send real requests to every tier, then stop.
        console: Where progress and the table go.
        log_format: Of the lines before the config is read.
        endpoints_file: Holds the real addresses as JSON from when all of them are open until the server stops.
        after_settling: Called when every variant has settled; returns problems, which end a check.

    Raises:
        ConfigError: A calibration or evaluation file does not fit its model, a model's backend is not installed, or
            the certificate or the tokens are not in order.
        FailedPrecondition: An address cannot be bound, or the endpoints file cannot be written.
        Internal: Serving processes end as often as they are started.
    """
    configure_logs(format=log_format or "text")
    # From the first moment on: unheeded, the signal ends the process.
    reload_signal = ReloadSignal()
    file = ConfigFile(config_file)
    config = read()
    problems = [*check_secrets(config), *check_packages(config), *check_datasets(config)]
    if problems:
        raise ConfigError(problems)
    tracing = start_telemetry(config.server)
    # What is shown to people must not come between lines that programs read.
    console.quiet = config.server.logs.format == "json" and console.stderr
    for warning in warnings_of_surroundings(config.server, os.environ):
        _log.warning(warning)
    stop_signals = StopSignals()
    served = _served(on_free_ports(config) if check else config, tracing)
    endpoints = served.start()
    reloader = Reloader(
        file,
        config,
        read=read,
        apply=served.apply,
        metrics=served.metrics,
        is_asked=reload_signal.take,
        on_reload=lambda done, config: served.tell_config(reload_document(done, digest=config_digest(config))),
        tracing=tracing,
    )
    admin = None
    try:
        admin = _admin_server(config, served, reloader) if not check else None
        admin_endpoints = admin.start() if admin is not None else None
        if admin is not None:
            served.admit_operators(admin.relay.ask)
        if not check:
            reloader.start()
        url = url_of(config.server, endpoints)
        with endpoints_announced(endpoints, endpoints_file, url=url, admin=admin_endpoints):
            _show_start(served, config, endpoints, admin=admin_endpoints, stop_signals=stop_signals, console=console)
            exit_code = 0
            if stop_signals.received:
                exit_code = _verdict(["stopped by a signal before every tier was tested"], console) if check else 0
            else:
                problems = after_settling(config, endpoints)
                if check:
                    exit_code = _verdict(problems + served.self_test(endpoints), console)
                else:
                    _wait(served, stop_signals)
                    if console.quiet:
                        _log.info("stopping: answering what is in flight")
                    console.print("stopping: answering what is in flight")
    except BaseException:
        _stop_changes(admin, reloader)
        served.stop()
        raise
    _stop_changes(admin, reloader)
    return leave(served, exit_code=exit_code)


def _admin_server(config: ServePruneConfig, served: Served, reloader: Reloader) -> AdminServer | None:
    server = config.server
    if server.admin is None:
        return None
    return AdminServer(
        server.admin,
        served,
        reloader,
        server=server,
        store=config.store.folder,
        metrics=served.metrics,
        environment=os.environ,
    )


def _stop_changes(admin: AdminServer | None, reloader: Reloader) -> None:
    """Have nobody change any more what is about to end."""
    if admin is not None:
        admin.stop()
    reloader.stop()


class WithRepository:
    """A server, and the models of a folder that it serves beside those of the config file."""

    def __init__(self, served: OneProcess | Supervisor, repository: ModelRepository) -> None:
        self._served = served
        self._repository = repository
        settings = repository.settings
        polls = settings.mode == "poll"
        self._watch = FolderWatch(repository, poll_seconds=settings.poll_seconds) if polls else None
        self.apply = repository.apply
        self.wait_settled = served.wait_settled
        self.tiers = served.tiers
        self.self_test = served.self_test
        self.look_now = served.look_now
        self.tell_config = served.tell_config
        self.admit_operators = served.admit_operators

    @property
    def failure(self) -> ServePruneError | None:
        """See `Served.failure`."""
        return self._served.failure

    @property
    def metrics(self) -> Metrics:
        """See `Served.metrics`."""
        return self._served.metrics

    @property
    def rollouts(self) -> Rollouts | None:
        """See `Served.rollouts`."""
        return self._served.rollouts

    def start(self) -> Endpoints:
        """See `Served.start`."""
        endpoints = self._served.start()
        self._repository.attach(self._served)
        if self._watch is not None:
            self._watch.start()
        return endpoints

    def stop(self) -> bool:
        """See `Served.stop`."""
        if self._watch is not None:
            self._watch.stop()
        self._repository.stop()
        return self._served.stop()


def _served(config: ServePruneConfig, tracing: Tracing | None) -> Served:
    """Assemble a server as the config says.

    Raises:
        ConfigError: A model of the repository that is to be loaded at the start cannot be.
    """
    if config.repository.mode == "none":
        return OneProcess(config, tracing=tracing) if config.server.processes == 1 else _supervisor(config, tracing)
    repository = ModelRepository(config)
    whole, contents = repository.config, repository.contents
    if config.server.processes == 1:
        return WithRepository(OneProcess(whole, loadable=repository, contents=contents, tracing=tracing), repository)
    return WithRepository(_supervisor(whole, tracing, loadable=repository, contents=contents), repository)


def _supervisor(
    config: ServePruneConfig,
    tracing: Tracing | None,
    *,
    loadable: LoadableModels = _FIXED,
    contents: Contents = MappingProxyType({}),
) -> Supervisor:
    return Supervisor(
        config,
        command=_SERVING_PROCESS,
        make_builder=lambda on_event: builder_of(config, tracing=tracing, on_event=on_event),
        loadable=loadable,
        contents=contents,
        tracing=tracing,
    )


def on_free_ports(config: ServePruneConfig) -> ServePruneConfig:
    """Return the same configuration listening on ports the system chooses."""
    free = {name: Address(getattr(config.server, name).host, 0) for name in ("http", "grpc", "metrics")}
    return config.model_copy(update={"server": config.server.model_copy(update=free)})


def with_addresses(config: ServePruneConfig, **addresses: str | None) -> ServePruneConfig:
    """Return the configuration with these addresses of the command line in place of the file's."""
    server = config.server.model_dump() | {name: value for name, value in addresses.items() if value is not None}
    return config.model_copy(update={"server": type(config.server).model_validate(server)})


def with_log_format(config: ServePruneConfig, log_format: str) -> ServePruneConfig:
    """Return the configuration with this format of the command line in place of the file's."""
    logs = config.server.logs.model_validate(config.server.logs.model_dump() | {"format": str(log_format)})
    return config.model_copy(update={"server": config.server.model_copy(update={"logs": logs})})


def _show_start(
    served: Served,
    config: ServePruneConfig,
    endpoints: Endpoints,
    *,
    admin: AdminEndpoints | None,
    stop_signals: StopSignals,
    console: Console,
) -> None:
    """Say where the server listens, follow its builds, and at last print the table of tiers."""
    listens = (
        f"HTTP {url_of(config.server, endpoints)}  gRPC {endpoints.grpc}  metrics http://{endpoints.metrics}/metrics"
    )
    if admin is not None:
        scheme = "http" if config.server.tls is None else "https"
        listens += f"  admin {scheme}://{admin.http} gRPC {admin.grpc}"
    # One line, whatever the width of a terminal that is not there.
    if console.quiet:
        _log.info("listening: %s", listens)
    console.print(listens, soft_wrap=True)
    finished: set[str] = set()
    with progress_display(console) as display:
        settled = False
        while not settled and not stop_signals.received:
            settled = served.wait_settled(_POLL_SECONDS)
            _check(served)
            models = served.tiers()
            shown = shown_names(models)
            for model in models:
                for tier in model["tiers"]:
                    name = f"{shown[model['name'], model['version']]}{QUALIFIER}{tier['tier']}"
                    if tier["progress"] is not None:
                        display.update(name, BuildProgress(**tier["progress"]))
                    elif tier["state"] in _SETTLED and name not in finished:
                        finished.add(name)
                        display.finish(name, tier["state"])
    if settled:
        console.print(tier_table(served.tiers()))


def _wait(served: Served, stop_signals: StopSignals) -> None:
    while not stop_signals.received:
        _check(served)
        time.sleep(_SIGNAL_POLL_SECONDS)


def _check(served: Served) -> None:
    if served.failure is not None:
        raise served.failure


def _verdict(problems: list[str], console: Console) -> int:
    for problem in problems:
        console.print(f"check failed: {escape(problem)}", style="red", highlight=False, soft_wrap=True)
    if not problems:
        console.print("check passed: every tier answered over HTTP and gRPC", style="green")
    return 1 if problems else 0
