"""A file that says where a server listens: with port 0 nobody else can know."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serveprune.administration.admin_server import AdminEndpoints
from serveprune.errors import FailedPrecondition
from serveprune.server import Endpoints


@contextmanager
def endpoints_announced(
    endpoints: Endpoints, file: Path | None, *, url: str, admin: AdminEndpoints | None = None
) -> Iterator[None]:
    """Keep the addresses in a JSON file while the context lasts; whoever waits for it never sees half of it.

    Args:
        endpoints: Of the server.
        file: Written, and removed at the end; ``None``: nothing is.
        url: The HTTP endpoint with its scheme, which says whether there is TLS.
        admin: Of the admin API, if there is one.

    Raises:
        FailedPrecondition: The file cannot be written.
    """
    addresses = {"http": str(endpoints.http), "grpc": str(endpoints.grpc), "metrics": str(endpoints.metrics)}
    addresses["url"] = url
    if admin is not None:
        addresses |= {"admin_http": str(admin.http), "admin_grpc": str(admin.grpc)}
    with addresses_announced(addresses, file):
        yield


@contextmanager
def addresses_announced(addresses: Mapping[str, str], file: Path | None) -> Iterator[None]:
    """See `endpoints_announced`; of any server.

    Raises:
        FailedPrecondition: The file cannot be written.
    """
    if file is None:
        yield
        return
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(dict(addresses)), encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        raise FailedPrecondition(f"--endpoints-file {file}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
