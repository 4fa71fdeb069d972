from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from serveprune.cli.serving import run, with_addresses, with_log_format
from serveprune.cli.tier_table import table_console
from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig


class LogFormat(StrEnum):
    """Forms of log lines."""

    TEXT = "text"
    JSON = "json"


def serve(
    config: Annotated[Path, typer.Argument(help="serveprune.yaml")],
    check: Annotated[
        bool, typer.Option("--check", help="Serve on free ports, send real requests to every tier, and stop.")
    ] = False,
    http: Annotated[str | None, typer.Option(help="host:port in place of server.http.")] = None,
    grpc: Annotated[str | None, typer.Option(help="host:port in place of server.grpc.")] = None,
    metrics: Annotated[str | None, typer.Option(help="host:port in place of server.metrics.")] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="In place of server.logs.format, from the first line on.")
    ] = None,
    endpoints_file: Annotated[
        Path | None,
        typer.Option(help="Write the real addresses there as JSON once all are open; removed when the server stops."),
    ] = None,
) -> None:
    """Serve the models of a config file, and build the tiers that are not in the store yet.

    When the file changes, or on SIGHUP, it is read again and applied whole or not at all.
    """

    def read() -> ServePruneConfig:
        loaded = with_addresses(load_config(config), http=http, grpc=grpc, metrics=metrics)
        return loaded if log_format is None else with_log_format(loaded, log_format)

    console = table_console(stderr=not check)
    raise typer.Exit(
        run(config, read, check=check, console=console, log_format=log_format, endpoints_file=endpoints_file)
    )
