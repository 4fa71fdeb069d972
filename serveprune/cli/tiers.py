import json
from typing import Annotated

import typer

from serveprune.cli.client import HttpClient
from serveprune.cli.credentials import CaFile, Cert, Key, TokenFile, credentials
from serveprune.cli.tier_table import table_console, tier_table


def tiers(
    model: Annotated[str | None, typer.Argument(help="One model; default: all.")] = None,
    url: Annotated[
        str, typer.Option(help="HTTP endpoint of a running server, http:// or https://.")
    ] = "http://127.0.0.1:8080",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show the tiers of a running server: state, quality, latency, speedup, size."""
    client = HttpClient(url, credentials=credentials(token_file=token_file, ca_file=ca_file, cert=cert, key=key))
    names = [model] if model else _model_names(client)
    described = [json.loads(client.request("GET", f"/v2/models/{name}/tiers")[0]) for name in names]
    if as_json:
        typer.echo(json.dumps(described[0] if model else described, indent=2))
        return
    table_console().print(tier_table(described))


def _model_names(client: HttpClient) -> list[str]:
    index = json.loads(client.request("POST", "/v2/repository/index")[0])
    return [entry["name"] for entry in index if "@" not in entry["name"]]
