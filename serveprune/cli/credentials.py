"""What a client needs to talk to a server with TLS or tokens: options that all commands share which are clients."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from serveprune.config.server import ServerConfig
from serveprune.errors import FailedPrecondition, InvalidArgument, ServePruneError
from serveprune.frontends.authorization import any_token, parse_tokens

_TOKEN_FILE, _CA_FILE, _CERT, _KEY = (f"SERVEPRUNE_{name}" for name in ("TOKEN_FILE", "CA_FILE", "CERT", "KEY"))

TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", envvar=_TOKEN_FILE, help="File with the token that the server asks for."),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", envvar=_CA_FILE, help="PEM: the authorities that vouch for the server. Default: the system's."
    ),
]
Cert = Annotated[
    Path | None, typer.Option("--cert", envvar=_CERT, help="PEM: a certificate to show to the server; with --key.")
]
Key = Annotated[Path | None, typer.Option("--key", envvar=_KEY, help="PEM: the private key of --cert.")]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows, and whom it trusts.

    Attributes:
        token: Sent with each request.
        ca_file: Instead of the system's authorities.
        cert_file: The certificate that is shown.
        key_file: Its key.
        is_own_server: The certificate of ``ca_file`` is the server's own; what it is called does not matter.
    """

    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    is_own_server: bool = False

    @property
    def are_for_tls(self) -> bool:
        """Whether some of them mean nothing without TLS."""
        return self.ca_file is not None or self.cert_file is not None

    def context(self) -> ssl.SSLContext:
        """Return them as Python's TLS takes them.

        Raises:
            InvalidArgument: A file cannot be read, or holds something else.
        """
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file is not None else None)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_passphrase)
        except (OSError, ValueError) as error:
            named = [str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file is not None]
            raise InvalidArgument(
                f"expected readable PEM files that belong together, got {', '.join(named)}: {_reason(error)}"
            ) from None
        if self.is_own_server:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


NO_CREDENTIALS = Credentials()


def credentials(*, token_file: Path | None, ca_file: Path | None, cert: Path | None, key: Path | None) -> Credentials:
    """Return what the options of a command say.

    Raises:
        InvalidArgument: A file cannot be read, or one of ``cert`` and ``key`` is missing.
    """
    if (cert is None) != (key is None):
        raise InvalidArgument("expected both of --cert and --key, or neither")
    return Credentials(_token(token_file) if token_file is not None else None, ca_file, cert, key)


def credentials_of_own_server(config: ServerConfig, *, environment: Mapping[str, str] = os.environ) -> Credentials:
    """Return what a server's test of itself needs; a client certificate, which no server has, from the environment.

    Raises:
        FailedPrecondition: The server asks for a client certificate, and the environment names none.
    """
    token = any_token(config.tokens, environment=environment) if config.tokens is not None else None
    if config.tls is None:
        return Credentials(token)
    cert, key = environment.get(_CERT), environment.get(_KEY)
    if config.tls.client_ca_file is not None and not (cert and key):
        raise FailedPrecondition(
            f"server.tls.client_ca_file is set, so a test needs a client certificate: set {_CERT} and {_KEY}"
        )
    return Credentials(
        token,
        config.tls.certificate_file,
        Path(cert) if cert and key else None,
        Path(key) if cert and key else None,
        is_own_server=True,
    )


def _token(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"--token-file: expected a readable file, got {file}: {error.strerror}") from None
    try:
        return parse_tokens(content, where=f"--token-file: {file}")[0].decode("ascii")
    except ServePruneError as error:
        raise InvalidArgument(error.message) from None


def _no_passphrase() -> bytes:
    # Otherwise OpenSSL would ask for one on the terminal.
    raise ValueError("the key has a passphrase")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "no certificate or key"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
