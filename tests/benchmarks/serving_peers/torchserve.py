"""TorchServe 0.12.0, its last release.

What its documentation recommends, and what was chosen:

- docs/performance_guide.md: an optimised runtime such as ONNX Runtime instead of eager torch, by a custom handler; then
  above all the batch size, its delay, and the number of workers. Two workers of one thread each, for two cores.
- docs/batch_inference_with_ts.md: a batch is sent when it is full or when the delay is over. The least delay above none
  is one millisecond. Both ways are in `SETTINGS`: one row a request, and batches.
- docs/logging.md: asynchronous logging for small models that want throughput. Access and model logs say a line or more
  per request; a log4j2 configuration of level "warn" leaves them out, since no other server here writes any.
- docs/configuration.md: system metrics are collected by a Python process every minute; switched off.
- Not `cpu_launcher_enable` with `--use_logical_core`: it pins workers to cores, which they share with the front end and
  the load generator here.
- Java's own settings are the defaults of its launcher.
"""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving_peers.peer import INSIDE, Endpoint, Setting
from serving_peers.server_process import free_ports, running
from serving_workloads import Workload
from wire_formats import PlainJson, TorchServeGrpc

_MODEL = "benchmark"


_PROPERTIES = """\
inference_address=http://127.0.0.1:{http}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_address=127.0.0.1
grpc_management_address=127.0.0.1
grpc_inference_port={grpc}
grpc_management_port={grpc_management}
initial_worker_port={worker}
model_store={folder}/store
load_models={model}.mar
async_logging=true
disable_system_metrics=true
job_queue_size=1000
"""
_LOGGING = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
    <Console name="STDOUT" target="SYSTEM_OUT"><PatternLayout pattern="%d [%-5p] %t %c - %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="warn"><AppenderRef ref="STDOUT"/></Root>
    <Logger name="ACCESS_LOG" level="warn"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="MODEL_LOG" level="warn"/>
  </Loggers>
</Configuration>
"""

SETTINGS: Mapping[str, Setting] = {
    "single": {"workers": 2, "threads": 1, "batch_size": 1, "batch_delay_ms": 0},
    "batched": {"workers": 2, "threads": 1, "batch_size": 16, "batch_delay_ms": 1},
}


class TorchServe:
    """Java front end, Python workers; JSON and gRPC of its own."""

    name = "torchserve"
    needs_torch = True
    settings = SETTINGS

    @contextmanager
    def serve(
        self, workload: Workload, setting: Setting, *, folder: Path, python: Path
    ) -> Iterator[Sequence[Endpoint]]:
        """See `Peer.serve`."""
        _archive(workload, setting, folder=folder, python=python)
        http, management, metrics, grpc, grpc_management, worker = free_ports(6)
        (folder / "config.properties").write_text(
            _PROPERTIES.format(
                http=http,
                management=management,
                metrics=metrics,
                grpc=grpc,
                grpc_management=grpc_management,
                worker=worker,
                folder=folder,
                model=_MODEL,
            )
        )
        (folder / "log4j2.xml").write_text(_LOGGING)
        command: list[str | Path] = [python.parent / "torchserve", "--start", "--foreground", "--disable-token-auth"]
        command += ["--ts-config", folder / "config.properties", "--log-config", folder / "log4j2.xml"]
        # Its files for sockets and the process id have fixed names.
        own = {name: str(folder) for name in ("TMPDIR", "TEMP")}
        path = f"{python.parent}:{_system_path()}"
        with running(
            command,
            folder=folder,
            environment={**own, "PATH": path, "LOG_LOCATION": str(folder), "METRICS_LOCATION": str(folder)},
            ready=lambda: _ready_workers(management) == setting["workers"],
        ):
            yield [
                Endpoint(http, PlainJson(f"/predictions/{_MODEL}")),
                Endpoint(grpc, TorchServeGrpc(_MODEL)),
            ]


def _archive(workload: Workload, setting: Setting, *, folder: Path, python: Path) -> None:
    store = folder / "store"
    store.mkdir()
    # Not --serialized-file, which knows endings of torch only.
    graph = folder / "model.onnx"
    shutil.copyfile(workload.graph, graph)
    configuration = {
        "minWorkers": setting["workers"],
        "maxWorkers": setting["workers"],
        "batchSize": setting["batch_size"],
        "maxBatchDelay": setting["batch_delay_ms"],
        "responseTimeout": 120,
        "handler": {"threads": setting["threads"]},
    }
    # JSON is YAML.
    (folder / "model-config.yaml").write_text(json.dumps(configuration))
    command: list[str | Path] = [python.parent / "torch-model-archiver", "--model-name", _MODEL, "--version", "1.0"]
    command += ["--handler", INSIDE / "torchserve_handler.py", "--export-path", store]
    command += ["--extra-files", f"{graph},{INSIDE / 'onnx_graph.py'}", "--config-file", folder / "model-config.yaml"]
    subprocess.run(command, check=True, capture_output=True)


def _ready_workers(port: int) -> int:
    # Its own /ping says that all is well while workers still start.
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/models/{_MODEL}", timeout=5) as answer:
            workers = json.load(answer)[0]["workers"]
    except (urllib.error.URLError, OSError):
        return 0
    return sum(worker["status"] == "READY" for worker in workers)


def _system_path() -> str:
    java = shutil.which("java")
    if java is None:
        raise SystemExit("TorchServe needs Java 17: apt-get install openjdk-17-jre-headless")
    return f"{Path(java).parent}:/usr/bin:/bin"
