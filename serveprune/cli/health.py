"""A probe for containers, without anything that takes time to import: it runs every few seconds."""

import http.client
import json
import ssl
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

import typer

ENDPOINTS_FILE = "SERVEPRUNE_ENDPOINTS_FILE"
"""The variable that tells `serve` where to write its addresses, and this command where to find them."""

_DEFAULT_URL = "http://127.0.0.1:8080"
_EXIT_UNHEALTHY = 1
_EXIT_BAD_INPUT = 2
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_PORTS = {"http": 80, "https": 443}
_OK = http.client.OK


def health(
    ready: Annotated[
        bool, typer.Option("--ready", help="Healthy only when every model answers; without it a live server is.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(help="HTTP endpoint. Default: as in --endpoints-file, or http://127.0.0.1:8080 without one."),
    ] = None,
    endpoints_file: Annotated[
        Path | None,
        typer.Option(envvar=ENDPOINTS_FILE, help="What `serve --endpoints-file` writes: where the server listens."),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(envvar="SERVEPRUNE_CERT", help="PEM: a certificate to show to the server.")
    ] = None,
    key: Annotated[Path | None, typer.Option(envvar="SERVEPRUNE_KEY", help="PEM: the private key of --cert.")] = None,
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="How long to wait for an answer.")] = 4.0,
) -> None:
    """Tell whether a server on this machine is live, or ready: for probes of containers.

    Exit status: 0 healthy, 1 not (or not yet), 2 bad input. A live server that still imports or builds is healthy,
    unless --ready is given.
    """
    try:
        asked = _parts(url if url is not None else _announced(endpoints_file))
        is_ready = _ask(asked, cert=cert, key=key, timeout_seconds=timeout_seconds)
    except _Refused as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_BAD_INPUT) from None
    except (OSError, http.client.HTTPException, _NotLive) as error:
        print(f"not live: {error}", file=sys.stderr)
        raise typer.Exit(_EXIT_UNHEALTHY) from None
    print("ready" if is_ready else "live, not ready")
    if ready and not is_ready:
        raise typer.Exit(_EXIT_UNHEALTHY)


def main() -> None:
    """Run this command alone, as ``serveprune health`` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(health)
    app(args=sys.argv[2:], prog_name="serveprune health")


class _NotLive(Exception):
    """The server is not there, or answers like none of ours."""


class _Refused(Exception):
    """What was asked for makes no sense."""


def _announced(file: Path | None) -> str:
    if file is None:
        return _DEFAULT_URL
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["url"])
    except FileNotFoundError:
        raise _NotLive(f"{file} is not there; a server writes it once it listens") from None
    except (ValueError, KeyError, TypeError):
        raise _Refused(f"expected {file} to be as `serveprune serve --endpoints-file` writes it") from None


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.scheme in _PORTS and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise _Refused(f"expected a URL such as {_DEFAULT_URL}, got {url!r}")


def _ask(parts: SplitResult, *, cert: Path | None, key: Path | None, timeout_seconds: float) -> bool:
    """Return whether a live server is ready."""
    host = parts.hostname or ""
    where = (_LOOPBACK.get(host, host), parts.port or _PORTS[parts.scheme])
    connection = http.client.HTTPConnection(*where, timeout=timeout_seconds)
    if parts.scheme == "https":
        context = _context(cert, key)
        connection = http.client.HTTPSConnection(*where, timeout=timeout_seconds, context=context)
    try:
        if _status(connection, "live") != _OK:
            raise _NotLive(f"{parts.geturl()} does not say that it is live")
        return _status(connection, "ready") == _OK
    finally:
        connection.close()


def _context(cert: Path | None, key: Path | None) -> ssl.SSLContext:
    # It asks its own machine and shows nothing secret: the name in the certificate does not matter.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except OSError as error:
            raise _Refused(f"expected a certificate and its key in {cert} and {key}: {error}") from None
    return context


def _status(connection: http.client.HTTPConnection, what: str) -> int:
    connection.request("GET", f"/v2/health/{what}", headers={"User-Agent": "serveprune-health"})
    response = connection.getresponse()
    response.read()
    return response.status
