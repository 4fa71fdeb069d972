import json
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from serveprune.cli.admin_client import (
    DEFAULT_URL,
    AdminTokenFile,
    AdminUrl,
    Who,
    Why,
    admin_client,
    this_operator,
)
from serveprune.cli.change_table import change_console, consequence_word
from serveprune.cli.client import HttpClient, ServerError
from serveprune.cli.credentials import CaFile, Cert, Key
from serveprune.config.change import Consequence

_EXIT_FAILURE = 1
_EXIT_BAD_INPUT = 2
_BAD_INPUT = (400, 409)


def config_reload(
    why: Why = "",
    who: Who = None,
    admin: AdminUrl = DEFAULT_URL,
    token_file: AdminTokenFile = None,
    ca_file: CaFile = None,
    cert: Cert = None,
    key: Key = None,
    as_json: bool = typer.Option(False, "--json", help="Print JSON for machines."),
) -> None:
    """Have a running server read its config file again, and say what came of it.

    Exit status: 0 applied, or nothing has changed; 2 the file was rejected,
    and the server goes on with what it had; 1 the server failed.
    """
    client = admin_client(admin, token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    document, exit_code = _reloaded(client, {"who": this_operator() if who is None else who, "why": why})
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    elif document["outcome"] == "rejected":
        problems = document["problems"]
        typer.echo("\n".join(problems))
        count = f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}"
        typer.echo(f"not applied, the server goes on with what it had: {count}", err=True)
    elif document["outcome"] == "unchanged":
        typer.echo("nothing has changed")
    else:
        change_console().print(_changes(document["changes"]))
    if exit_code:
        raise typer.Exit(exit_code)


def _reloaded(client: HttpClient, body: dict[str, str]) -> tuple[dict[str, Any], int]:
    try:
        answer, _ = client.request("POST", "/admin/config/reload", body=json.dumps(body).encode())
    except ServerError as error:
        document = _document(error.body)
        if document.get("outcome") != "rejected":
            raise
        return document, _EXIT_BAD_INPUT if error.status in _BAD_INPUT else _EXIT_FAILURE
    return _document(answer), 0


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _changes(changes: list[dict[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for change in changes:
        remarks = [*change["built"], *change["loaded"]] + ([change["note"]] if change["note"] else [])
        said = Text.assemble(change["text"], (f"  ({', '.join(remarks)})" if remarks else "", "dim"))
        table.add_row(consequence_word(Consequence(change["consequence"])), said)
    return table
