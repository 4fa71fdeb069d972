"""The files that tell a TorchServe how to run: `config.properties` and the settings of its logs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serveprune.config.server import Address
from serveprune.errors import InvalidArgument
from serveprune.handlers.torchserve.hosting.addresses import Addresses
from serveprune.handlers.torchserve.settings import DEFAULT_MESSAGE_BYTES, METRICS_VARIABLE, RESPONSE_LIMIT_VARIABLE

_ARGUMENTS = frozenset(("models", "model_store", "load_models", "disable_token_authorization", "enable_model_api"))
"""Properties that are said on the command line."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a TorchServe is to run.

    Attributes:
        model_store: Folder of the archives.
        models: Names of those that are loaded; each is in a file `NAME.mar`.
        addresses: Where it listens; no port is 0.
        token_auth: Whether calls have to show a token.
        model_api: Whether models may be registered and unregistered by calls.
        metrics_file: Its `metrics.yaml`.
        max_request_bytes: Largest body or gRPC message that it takes.
        max_response_bytes: Largest answer that it takes of a worker; one that gives a larger one is ended.
        metrics_page: Where workers serve all of our metrics, as archives say that do not say it themselves.
        further: Properties beside those that are made of the above.
    """

    model_store: Path
    models: tuple[str, ...]
    addresses: Addresses
    token_auth: bool
    model_api: bool
    metrics_file: Path
    max_request_bytes: int = DEFAULT_MESSAGE_BYTES
    max_response_bytes: int = DEFAULT_MESSAGE_BYTES
    metrics_page: Address | None = None
    further: Mapping[str, str] = field(default_factory=dict)


def worker_variables(settings: RunSettings) -> dict[str, str]:
    """Return what handlers are told by variables of the environment."""
    page = {} if settings.metrics_page is None else {METRICS_VARIABLE: str(settings.metrics_page)}
    return {RESPONSE_LIMIT_VARIABLE: str(settings.max_response_bytes), **page}


def properties(settings: RunSettings) -> str:
    """Return the content of `config.properties`.

    Raises:
        InvalidArgument: A further property is one that is made of the other settings.
    """
    addresses = settings.addresses
    values: Mapping[str, object] = {
        "inference_address": f"http://{addresses.inference}",
        "management_address": f"http://{addresses.management}",
        "metrics_address": f"http://{addresses.metrics}",
        "grpc_inference_address": addresses.grpc.host,
        "grpc_inference_port": addresses.grpc.port,
        "grpc_management_address": addresses.grpc_management.host,
        "grpc_management_port": addresses.grpc_management.port,
        "metrics_mode": "prometheus",
        "metrics_config": settings.metrics_file.absolute(),
        # Archives say themselves how many they want; of those that do not, TorchServe would start one a core.
        "default_workers_per_model": 1,
        "install_py_dep_per_model": "false",
        "max_request_size": settings.max_request_bytes,
        "max_response_size": settings.max_response_bytes,
        # Nothing is fetched from elsewhere.
        "allowed_urls": f"file://{settings.model_store.absolute()}/.*",
    }
    taken = sorted(settings.further.keys() & (values.keys() | _ARGUMENTS))
    if taken:
        raise InvalidArgument(f"--property {taken[0]}: expected a property that no other option is for, got this one")
    return "".join(f"{name}={_escaped(str(value))}\n" for name, value in {**values, **settings.further}.items())


def _escaped(value: str) -> str:
    """Return a value as Java's properties have it: ASCII, with UTF-16 units for the rest."""
    units = value.encode("utf-16-be")
    codes = [int.from_bytes(units[place : place + 2]) for place in range(0, len(units), 2)]
    return "".join(chr(code) if 0x20 <= code < 0x7F and chr(code) != "\\" else f"\\u{code:04x}" for code in codes)


LOG_SETTINGS = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error">
  <Appenders>
    <RollingFile name="server" fileName="logs/torchserve.log" filePattern="logs/torchserve.%i.log.gz">
      <PatternLayout pattern="%d{ISO8601} [%-5p] %c - %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="20 MB"/></Policies>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
    <RollingFile name="workers" fileName="logs/workers.log" filePattern="logs/workers.%i.log.gz">
      <PatternLayout pattern="%d{ISO8601} %t - %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="20 MB"/></Policies>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off" additivity="false"/>
    <Logger name="TS_METRICS" level="off" additivity="false"/>
    <Logger name="MODEL_METRICS" level="off" additivity="false"/>
    <Logger name="MODEL_LOG" level="info" additivity="false">
      <RegexFilter regex=".*Backend received inference at.*" onMatch="DENY" onMismatch="NEUTRAL"/>
      <AppenderRef ref="workers"/>
    </Logger>
    <Logger name="org.pytorch.serve" level="info"/>
    <Logger name="org.pytorch.serve.wlm.BatchAggregator" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="info">
      <RegexFilter regex="(Looping backend response|Backend response time).*" useRawMsg="true" onMatch="DENY"
        onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="org.pytorch.serve.wlm.WorkerLifeCycle" level="warn"/>
    <Logger name="io.netty" level="error"/>
    <Root level="warn"><AppenderRef ref="server"/></Root>
  </Loggers>
</Configuration>
"""
"""Two small logs and none of single requests; relative to where TorchServe runs."""

SERVER_LOG = Path("logs", "torchserve.log")
WORKERS_LOG = Path("logs", "workers.log")
CONSOLE_LOG = Path("logs", "console.log")
