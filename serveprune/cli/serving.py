"""What `serve` and `demo` share: start, show the builds, test or keep serving, drain."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from serveprune.cli.console import progress_display
from serveprune.cli.endpoints_file import endpoints_announced
from serveprune.cli.self_test import self_test
from serveprune.cli.tier_table import tier_table
from serveprune.config.root import ServePruneConfig
from serveprune.config.server import Address
from serveprune.errors import ConfigError
from serveprune.observability.logs import configure_logs
from serveprune.preflight import check_datasets
from serveprune.routing.tier_selection import QUALIFIER
from serveprune.server import Endpoints, Server, StopSignals

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


def run(
    config: ServePruneConfig,
    *,
    check: bool,
    console: Console,
    endpoints_file: Path | None = None,
    after_settling: Callable[[Server, Endpoints], list[str]] = lambda server, endpoints: [],
) -> int:
    """Serve until a signal comes, or with ``check`` only until every tier was tested; return the exit code.

    Args:
        config: What to serve.
        check: Listen on free ports, send real requests to every tier, then stop.
        console: Where progress and the table go.
        endpoints_file: Holds the real addresses as JSON from when all of them are open until the server stops.
        after_settling: Called when every variant has settled; returns problems, which end a check.

    Raises:
        ConfigError: A calibration or evaluation file does not fit its model.
        FailedPrecondition: An address cannot be bound, or the endpoints file cannot be written.
    """
    configure_logs()
    problems = check_datasets(config)
    if problems:
        raise ConfigError(problems)
    stop_signals = StopSignals()
    server = Server(on_free_ports(config) if check else config)
    endpoints = server.start()
    try:
        with endpoints_announced(endpoints, endpoints_file):
            exit_code = _serve(
                server,
                endpoints=endpoints,
                stop_signals=stop_signals,
                check=check,
                console=console,
                after_settling=after_settling,
            )
    finally:
        at_rest = server.stop()
    if not at_rest:
        _log.warning("a batch is still being computed after server.drain_seconds; it is abandoned")
        sys.stdout.flush()
        sys.stderr.flush()
        # An ordinary exit would take the interpreter away from under ONNX Runtime's threads, and abort.
        os._exit(exit_code)
    return exit_code


def _serve(
    server: Server,
    *,
    endpoints: Endpoints,
    stop_signals: StopSignals,
    check: bool,
    console: Console,
    after_settling: Callable[[Server, Endpoints], list[str]],
) -> int:
    # One line, whatever the width of a terminal that is not there.
    console.print(
        f"HTTP http://{endpoints.http}  gRPC {endpoints.grpc}  metrics http://{endpoints.metrics}/metrics",
        soft_wrap=True,
    )
    _show_until_settled(server, stop_signals, console)
    if stop_signals.received:
        return _verdict(["stopped by a signal before every tier was tested"], console) if check else 0
    console.print(tier_table(_tiers(server)))
    problems = after_settling(server, endpoints)
    if check:
        problems += self_test(server, endpoints)
        return _verdict(problems, console)
    stop_signals.wait()
    console.print("stopping: answering what is in flight")
    return 0


def on_free_ports(config: ServePruneConfig) -> ServePruneConfig:
    """Return the same configuration listening on ports the system chooses."""
    free = {name: Address(getattr(config.server, name).host, 0) for name in ("http", "grpc", "metrics")}
    return config.model_copy(update={"server": config.server.model_copy(update=free)})


def with_addresses(config: ServePruneConfig, **addresses: str | None) -> ServePruneConfig:
    """Return the configuration with these addresses of the command line in place of the file's."""
    server = config.server.model_dump() | {name: value for name, value in addresses.items() if value is not None}
    return config.model_copy(update={"server": type(config.server).model_validate(server)})


def _tiers(server: Server) -> list[dict[str, Any]]:
    return [server.controlplane.tiers(model.name) for model in server.registry.models()]


def _show_until_settled(server: Server, stop_signals: StopSignals, console: Console) -> None:
    finished: set[str] = set()
    with progress_display(console) as display:
        settled = False
        while not settled and not stop_signals.received:
            settled = server.controlplane.wait_settled(_POLL_SECONDS)
            for model in server.registry.models():
                for variant in model.variants.values():
                    name = f"{model.name}{QUALIFIER}{variant.tier}"
                    if variant.progress is not None:
                        display.update(name, variant.progress)
                    elif variant.state.is_settled and name not in finished:
                        finished.add(name)
                        display.finish(name, str(variant.state))


def _verdict(problems: list[str], console: Console) -> int:
    for problem in problems:
        console.print(f"check failed: {escape(problem)}", style="red", highlight=False, soft_wrap=True)
    if not problems:
        console.print("check passed: every tier answered over HTTP and gRPC", style="green")
    return 1 if problems else 0
