import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, ByteSize, Field, PlainSerializer, WithJsonSchema

from serveprune.config.base import ConfigModel


class Address(NamedTuple):
    """Where a front end listens; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _parse_address(value: Any) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f'expected "host:port", got {value!r}')
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'expected "host:port" with a port from 0 to 65535, got {value!r}')
    return Address(host.strip("[]"), int(port))


ListenAddress = Annotated[
    Address,
    BeforeValidator(_parse_address),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": r"^.+:\d+$", "examples": ["127.0.0.1:8080"]}),
]


class StoreConfig(ConfigModel):
    """Where artifacts live and how much disk they may take."""

    path: Path = Field(Path(".serveprune"), description="Folder of the artifact store.")
    max_bytes: ByteSize = Field(
        ByteSize(20 * 2**30),
        description="Least recently used artifacts are evicted beyond this size; loaded ones never.",
    )


class ServerConfig(ConfigModel):
    """Front ends, executors, and the limits that protect them."""

    http: ListenAddress = Field(Address("127.0.0.1", 8080), description="Open Inference Protocol over HTTP.")
    grpc: ListenAddress = Field(Address("127.0.0.1", 8081), description="Open Inference Protocol over gRPC.")
    metrics: ListenAddress = Field(Address("127.0.0.1", 8082), description="Prometheus metrics.")
    executors: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Batches that may be computed at the same time. Default: the number of cores.",
    )
    threads_per_executor: int = Field(1, ge=1, description="Threads one batch may use inside the backend.")
    grpc_workers: int = Field(64, ge=1, description="gRPC calls that may be in progress at the same time.")
    max_request_bytes: ByteSize = Field(
        ByteSize(128 * 2**20), description="Largest accepted HTTP body or gRPC message."
    )
    max_queued_requests: int = Field(1024, ge=1, description="Requests that may wait or run, all models together.")
    request_timeout_seconds: float = Field(60.0, gt=0, description="A request not answered by then fails.")
    body_timeout_seconds: float = Field(
        30.0, gt=0, description="A client that takes longer than this to send its body is cut off."
    )
    drain_seconds: float = Field(30.0, ge=0, description="How long a stop waits for requests in flight.")


class BuildsConfig(ConfigModel):
    """What a build of an artifact may take from the machine that is serving."""

    threads: int = Field(1, ge=1, description="Compute threads of one build.")
    max_memory_bytes: ByteSize = Field(
        ByteSize(8 * 2**30), description="Resident memory at which a build is killed and counted as failed."
    )
    niceness: int = Field(10, ge=0, le=19, description="Added to the process niceness of builds.")
    timeout_seconds: float = Field(3600.0, gt=0, description="A build that takes longer is killed.")
