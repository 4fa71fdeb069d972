import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, ByteSize, Field, PlainSerializer, WithJsonSchema

from serveprune.config.base import ConfigModel
from serveprune.config.locations import FolderToBe
from serveprune.config.numbers import Number, WholeNumber
from serveprune.config.observability import LogsConfig, TracingConfig
from serveprune.config.problem import description
from serveprune.config.security import NeverEmpty, TlsConfig, TokensConfig


class Address(NamedTuple):
    """Where a front end listens; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+):(?P<port>[0-9]{1,5})", re.ASCII)


def parse_address(value: Any) -> Address:
    """Read ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, Address):
        return value
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f'expected "host:port" with a port from 0 to 65535, got {description(value)}')
    return Address(match["host"].strip("[]"), int(match["port"]))


ListenAddress = Annotated[
    Address,
    BeforeValidator(parse_address),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "format": "address", "pattern": r"^.+:\d+$", "examples": ["127.0.0.1:8080"]}),
]

_LARGEST_SIZE_BYTES = 2**60
_SIZE = re.compile(r"\s*(?P<number>[0-9]{1,20}(?:\.[0-9]{1,20})?)\s*(?P<unit>|B|[KMGTP]i?B)\s*", re.IGNORECASE)
_UNIT_POWER = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(value: Any) -> int:
    """Read a number of bytes, or text such as `512MiB`.

    Raises:
        ValueError: It is something else.
    """
    size = None
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        unit = match["unit"].lower()
        size = int(Decimal(match["number"]) * (1024 if "i" in unit else 1000) ** _UNIT_POWER[unit[:1]])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    if size is None or not 1 <= size <= _LARGEST_SIZE_BYTES:
        raise ValueError(f"expected a size above 0 in bytes, such as 512MiB or 20GiB, got {description(value)}")
    return size


Size = Annotated[
    ByteSize,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGTPkmgtp]?i?[Bb])?\s*$"},
            ],
            "format": "size",
            "examples": ["20GiB", "512MiB"],
        }
    ),
]
"""Bytes; text such as `20GiB` (powers of 1024) or `20GB` (powers of 1000) is accepted."""


class StoreConfig(ConfigModel):
    """Where artifacts live and how much disk they may take."""

    path: FolderToBe = Field(
        default=Path(".serveprune"), validate_default=True, description="Folder of the artifact store."
    )
    max_bytes: Size = Field(
        default=ByteSize(20 * 2**30),
        description="Beyond this size the least recently used artifacts go, loaded ones never, and what passes share.",
    )


class AdminConfig(ConfigModel):
    """The admin API, which reloads the config and moves rollouts on: docs/admin.md. With `tls` it is encrypted, too."""

    http: ListenAddress = Field(
        default=Address("127.0.0.1", 8083),
        description="The admin API over HTTP. Port 0: any free one.",
        json_schema_extra={"default": "127.0.0.1:8083"},
    )
    grpc: ListenAddress = Field(
        default=Address("127.0.0.1", 8084),
        description="The admin API over gRPC. Port 0: any free one.",
        json_schema_extra={"default": "127.0.0.1:8084"},
    )
    tokens: Annotated[TokensConfig, NeverEmpty] = Field(
        description="Tokens of operators, of which each call has to show one; other ones than those of clients."
    )


class ServerConfig(ConfigModel):
    """Front ends, executors, and the limits that protect them."""

    http: ListenAddress = Field(
        default=Address("127.0.0.1", 8080),
        description="Open Inference Protocol over HTTP. Port 0: any free one.",
        json_schema_extra={"default": "127.0.0.1:8080"},
    )
    grpc: ListenAddress = Field(
        default=Address("127.0.0.1", 8081),
        description="Open Inference Protocol over gRPC. Port 0: any free one.",
        json_schema_extra={"default": "127.0.0.1:8081"},
    )
    metrics: ListenAddress = Field(
        default=Address("127.0.0.1", 8082),
        description="Prometheus metrics. Port 0: any free one.",
        json_schema_extra={"default": "127.0.0.1:8082"},
    )
    tls: Annotated[TlsConfig | None, NeverEmpty] = Field(
        default=None, description="TLS for HTTP and gRPC: docs/security.md. Default: neither is encrypted."
    )
    tokens: Annotated[TokensConfig | None, NeverEmpty] = Field(
        default=None,
        description="Tokens of which a client has to send one as `authorization: Bearer ...`. Default: none is needed.",
    )
    admin: Annotated[AdminConfig | None, NeverEmpty] = Field(
        default=None, description="The admin API, on ports of its own. Default: there is none."
    )
    tracing: Annotated[TracingConfig | None, NeverEmpty] = Field(
        default=None, description="Traces of requests and builds, given `{}` as the environment says. Default: none."
    )
    logs: LogsConfig = Field(default_factory=LogsConfig, description="Lines on standard error.")
    processes: WholeNumber = Field(
        default=1,
        ge=1,
        le=64,
        description="Serving processes that share the ports. Each has an equal part of executors, grpc_workers, "
        "max_connections and what may be buffered and queued, at least one.",
    )
    executors: WholeNumber = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        le=1024,
        description="Batches that may be computed at the same time. Default: the number of cores.",
    )
    threads_per_executor: WholeNumber = Field(
        default=1, ge=1, le=1024, description="Threads one batch may use inside the backend."
    )
    grpc_workers: WholeNumber = Field(
        default=64, ge=1, le=4096, description="gRPC calls that may be in progress at the same time."
    )
    # gRPC keeps its limit in 32 bits.
    max_request_bytes: Annotated[Size, Field(le=2**31 - 1)] = Field(
        default=ByteSize(128 * 2**20), description="Largest accepted HTTP body or gRPC message; below 2GiB."
    )
    max_buffered_bytes: Size = Field(
        default=ByteSize(2**30),
        description="HTTP bodies held at once while they are received, all connections together, and as much again "
        "for what large JSON is parsed into; never less than one of max_request_bytes.",
    )
    max_connections: WholeNumber = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Client connections that are open at once, of HTTP and of gRPC each; more are turned away.",
    )
    max_header_bytes: Annotated[Size, Field(ge=1024, le=2**24)] = Field(
        default=ByteSize(64 * 2**10),
        description="Headers of an HTTP request, or metadata of a gRPC call; of a URL as much again.",
    )
    max_request_rows: WholeNumber = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Rows, texts or images in one request. More than a model's max_batch_size are computed piece by "
        "piece.",
    )
    max_queued_requests: WholeNumber = Field(
        default=1024, ge=1, le=1_000_000, description="Requests that may wait or run, all models together."
    )
    max_queued_bytes: Size = Field(
        default=ByteSize(2**30), description="Inputs of the requests that wait or run, all models together."
    )
    request_timeout_seconds: Number = Field(
        default=60.0, gt=0, le=86_400, description="A request not answered by then fails."
    )
    body_timeout_seconds: Number = Field(
        default=30.0, gt=0, le=86_400, description="A client that takes longer than this to send its body is cut off."
    )
    drain_seconds: Number = Field(
        default=30.0, ge=0, le=86_400, description="How long a stop waits for requests in flight."
    )


class BuildsConfig(ConfigModel):
    """What a build of an artifact may take from the machine that is serving."""

    threads: WholeNumber = Field(default=1, ge=1, le=1024, description="Compute threads of one build.")
    max_memory_bytes: Size = Field(
        default=ByteSize(8 * 2**30), description="Resident memory at which a build is killed and counted as failed."
    )
    niceness: WholeNumber = Field(default=10, ge=0, le=19, description="Added to the process niceness of builds.")
    timeout_seconds: Number = Field(
        default=3600.0, gt=0, le=30 * 86_400, description="A build that takes longer is killed."
    )
