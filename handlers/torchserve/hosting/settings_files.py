"""The files that tell a TorchServe how to run: `config.properties` and the settings of its logs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serveprune.handlers.torchserve.hosting.addresses import Addresses


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
    """

    model_store: Path
    models: tuple[str, ...]
    addresses: Addresses
    token_auth: bool
    model_api: bool
    metrics_file: Path


def properties(settings: RunSettings) -> str:
    """Return the content of `config.properties`."""
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
        # Nothing is fetched from elsewhere.
        "allowed_urls": f"file://{settings.model_store.absolute()}/.*",
    }
    return "".join(f"{name}={_escaped(str(value))}\n" for name, value in values.items())


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
    <Logger name="MODEL_LOG" level="info" additivity="false"><AppenderRef ref="workers"/></Logger>
    <Logger name="org.pytorch.serve" level="info"/>
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
