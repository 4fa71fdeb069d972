"""The server's certificate: read, tried, and ready for either protocol."""

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serveprune.config.security import TlsConfig
from serveprune.errors import FailedPrecondition
from serveprune.frontends.public_key import key_kind
from serveprune.frontends.watched_files import Contents, WatchedFiles

CERTIFICATE = "certificate"
"""Name of the certificate in logs and metrics."""

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; all that TLS 1.3 has are of this kind: authenticated, and of no use to whoever gets the key later."""
_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----")
_KEY_KINDS = ("RSA", "P-256", "P-384")
_ENCRYPTED = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A certificate that fits its key.

    Attributes:
        chain: PEM.
        key: PEM.
        client_ca: PEM, if clients must have a certificate of these authorities.
        context: All of it, for HTTP.
    """

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    context: ssl.SSLContext = field(repr=False)


def watched_certificate(config: TlsConfig, *, name: str = CERTIFICATE) -> WatchedFiles[ServerCertificate]:
    """Read the files of a server's certificate.

    Args:
        config: Names them.
        name: Of what is read, in logs and metrics.

    Raises:
        FailedPrecondition: One cannot be read, or they do not belong together.
    """
    files = {config.certificate_file: "server.tls.certificate_file", config.key_file: "server.tls.key_file"}
    if config.client_ca_file is not None:
        files[config.client_ca_file] = "server.tls.client_ca_file"
    return WatchedFiles(files, lambda contents: server_certificate(config, contents), name=name)


def server_certificate(config: TlsConfig, contents: Contents) -> ServerCertificate:
    """Return what the files of a server's certificate hold.

    Args:
        config: Names them.
        contents: Theirs.

    Raises:
        FailedPrecondition: They do not belong together, or are of another kind.
    """
    chain, key = contents[config.certificate_file], contents[config.key_file]
    client_ca = contents[config.client_ca_file] if config.client_ca_file is not None else None
    if not _CERTIFICATE.search(chain):
        raise FailedPrecondition(
            f"server.tls.certificate_file: expected a certificate in PEM form, got none: {config.certificate_file}"
        )
    if not _KEY.search(key):
        raise FailedPrecondition(
            f"server.tls.key_file: expected a private key in PEM form, got none: {config.key_file}"
        )
    if any(mark in key for mark in _ENCRYPTED):
        raise FailedPrecondition(
            f"server.tls.key_file: expected a key without a passphrase, got an encrypted one: {config.key_file}"
        )
    context = _context()
    try:
        # Only from a file can a context load them, and one that is being replaced could change between two reads.
        with _in_memory(chain) as chain_file, _in_memory(key) as key_file:
            context.load_cert_chain(chain_file, key_file, password=_no_passphrase)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise FailedPrecondition(
            f"server.tls: expected a certificate and its private key, but {_reason(error)} (certificate_file: "
            f"{config.certificate_file}, key_file: {config.key_file})"
        ) from None
    if key_kind(chain) not in _KEY_KINDS:
        raise FailedPrecondition(
            f"server.tls.certificate_file: expected a certificate for a key of kind {', '.join(_KEY_KINDS)}, which the "
            f"gRPC runtime takes, got {key_kind(chain) or 'another'}: {config.certificate_file}"
        )
    if client_ca is not None:
        _require_clients_of(client_ca, context, config=config)
    return ServerCertificate(chain, key, client_ca, context)


def _require_clients_of(client_ca: bytes, context: ssl.SSLContext, *, config: TlsConfig) -> None:
    try:
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise FailedPrecondition(
            "server.tls.client_ca_file: expected certificates of authorities in PEM form, got something else: "
            f"{config.client_ca_file}"
        ) from None
    context.verify_mode = ssl.CERT_REQUIRED


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give bytes the path of a file that is on no disk."""
    descriptor = os.memfd_create("serveprune-pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _no_passphrase() -> bytes:
    # Otherwise OpenSSL would ask for one on the terminal.
    raise ValueError("the key has a passphrase")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is another certificate's"
        # OpenSSL's own word for it, in which nothing of the files stands.
        return f"OpenSSL cannot use them ({error.reason or 'unknown reason'})"
    return str(error) if isinstance(error, ValueError) else "they cannot be loaded"
