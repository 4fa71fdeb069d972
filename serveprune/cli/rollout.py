import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from serveprune.cli.admin_client import (
    DEFAULT_URL,
    AdminTokenFile,
    AdminUrl,
    Who,
    Why,
    admin_client,
    this_operator,
)
from serveprune.cli.client import HttpClient
from serveprune.cli.credentials import CaFile, Cert, Key
from serveprune.cli.rollout_table import rollout_line, rollout_table
from serveprune.cli.tier_table import table_console

rollout_app = typer.Typer(no_args_is_help=True)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Whose canary.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@rollout_app.command()
def status(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="One model; default: all.")] = None,
    admin: AdminUrl = DEFAULT_URL,
    token_file: AdminTokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show how canaries stand: phase, weight, steps, and what their guards see."""
    client = admin_client(admin, token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    if model is None:
        document = _asked(client, "GET", "/admin/rollouts")
        rollouts = document["rollouts"]
    else:
        document = _asked(client, "GET", f"/admin/rollouts/{quote(model, safe='')}")
        rollouts = [document]
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    elif rollouts:
        table_console().print(rollout_table(rollouts))
    else:
        typer.echo("no model of this server has a canary")


@rollout_app.command()
def pause(
    model: Model,
    why: Why = "",
    who: Who = None,
    admin: AdminUrl = DEFAULT_URL,
    token_file: AdminTokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Hold a canary where it is: its weight stays, no time passes. Guards still abort it."""
    client = admin_client(admin, token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    _move(client, "pause", model, who=who, why=why, as_json=as_json)


@rollout_app.command()
def resume(
    model: Model,
    why: Why = "",
    who: Who = None,
    admin: AdminUrl = DEFAULT_URL,
    token_file: AdminTokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Lift an operator's pause, or end the wait of a step that waits for an operator."""
    client = admin_client(admin, token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    _move(client, "resume", model, who=who, why=why, as_json=as_json)


@rollout_app.command()
def promote(
    model: Model,
    why: Why = "",
    who: Who = None,
    admin: AdminUrl = DEFAULT_URL,
    token_file: AdminTokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Give a canary everything at once, whatever its steps and guards say."""
    client = admin_client(admin, token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    _move(client, "promote", model, who=who, why=why, as_json=as_json)


@rollout_app.command()
def abort(
    model: Model,
    why: Why = "",
    who: Who = None,
    admin: AdminUrl = DEFAULT_URL,
    token_file: AdminTokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take everything from a canary, for good; only a change of its config begins anew."""
    client = admin_client(admin, token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    _move(client, "abort", model, who=who, why=why, as_json=as_json)


def _move(client: HttpClient, act: str, model: str, *, who: str | None, why: str, as_json: bool) -> None:
    body = {"who": this_operator() if who is None else who, "why": why}
    moved = _asked(client, "POST", f"/admin/rollouts/{quote(model, safe='')}/{act}", body)
    if as_json:
        typer.echo(json.dumps(moved, indent=2))
    else:
        table_console().print(rollout_line(moved), soft_wrap=True)


def _asked(client: HttpClient, method: str, path: str, body: Any = None) -> Any:
    content = b"" if body is None else json.dumps(body).encode()
    return json.loads(client.request(method, path, body=content)[0])
