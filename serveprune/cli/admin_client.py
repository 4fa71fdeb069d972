"""What the commands share that ask the admin API of a running server."""

import getpass
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from serveprune.cli.client import HttpClient
from serveprune.cli.credentials import credentials
from serveprune.config.surroundings import is_loopback
from serveprune.errors import InvalidArgument, ServePruneError
from serveprune.frontends.authorization import parse_tokens

DEFAULT_URL = "http://127.0.0.1:8083"
_TOKEN = "SERVEPRUNE_ADMIN_TOKEN"

AdminUrl = Annotated[
    str,
    typer.Option("--admin", envvar="SERVEPRUNE_ADMIN", help="Admin API of a running server, http:// or https://."),
]
AdminTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="SERVEPRUNE_ADMIN_TOKEN_FILE",
        help=f"File with an operator's token. Default: the variable {_TOKEN} holds the token.",
    ),
]
Who = Annotated[str | None, typer.Option("--who", help="Who asks, for the audit log. Default: this user at this host.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the audit log.")]


def admin_client(
    url: str,
    *,
    token_file: Path | None,
    ca_file: Path | None,
    cert: Path | None,
    key: Path | None,
    environment: Mapping[str, str] = os.environ,
) -> HttpClient:
    """Return a client of the admin API at a URL; warn where the token can be read on the way.

    Raises:
        InvalidArgument: There is no token, or an option says nothing that could be used.
    """
    given = credentials(token_file=token_file, ca_file=ca_file, cert=cert, key=key)
    if given.token is None:
        given = replace(given, token=_token_of(environment))
    client = HttpClient(url, credentials=given)
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        typer.echo(
            f"warning: the token goes to {parts.hostname} in plain text; use https:// where there is TLS", err=True
        )
    return client


def this_operator(environment: Mapping[str, str] = os.environ) -> str:
    """Return who runs this command: ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may have a user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _token_of(environment: Mapping[str, str]) -> str:
    text = environment.get(_TOKEN, "")
    if not text.strip():
        raise InvalidArgument(f"expected an operator's token, got none: set {_TOKEN}, or name a file by --token-file")
    try:
        return parse_tokens(text.encode("utf-8", "surrogateescape"), where=_TOKEN)[0].decode("ascii")
    except ServePruneError as error:
        raise InvalidArgument(error.message) from None
