"""The KServe SDK 0.21.0: its own model server.

What its documentation recommends, and what was chosen:

- "How to write a custom predictor": a `Model` that takes `InferRequest` and returns `InferResponse`, for HTTP and gRPC.
- `--workers`: uvicorn processes, "often used to help increase the resource utilization": two for two cores. They serve
  HTTP; gRPC is served by the first process alone, which also waits for signs of life of the others (blocking its event
  loop if one is slow), so one process is tried as well. Predictions run within the event loop, as in all of its
  examples, or in two threads, so that both cores compute.
- Batching is not part of the SDK: the batcher is a sidecar of the cluster, and "only implemented with KServe v1 HTTP
  protocol".
- `--enable_latency_logging` and access logs write lines per request; off.
- The binary extension over HTTP is spoken both ways.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving_peers.peer import INSIDE, Endpoint, Setting
from serving_peers.server_process import answers, free_ports, listens, running
from serving_workloads import Workload
from wire_formats import OipBinary, OipGrpc, OipJson

_MODEL = "benchmark"


_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {name: {"level": "WARNING"} for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access")},
}

SETTINGS: Mapping[str, Setting] = {
    "inline": {"workers": 2, "executors": 0, "threads": 1},
    "threaded": {"workers": 2, "executors": 2, "threads": 1},
    "one-process": {"workers": 1, "executors": 0, "threads": 1},
    "one-process-threaded": {"workers": 1, "executors": 2, "threads": 1},
}


class KServe:
    """JSON, binary and gRPC of the Open Inference Protocol."""

    name = "kserve"
    needs_torch = False
    settings = SETTINGS

    @contextmanager
    def serve(
        self, workload: Workload, setting: Setting, *, folder: Path, python: Path
    ) -> Iterator[Sequence[Endpoint]]:
        """See `Peer.serve`."""
        http, grpc = free_ports(2)
        (folder / "logging.json").write_text(json.dumps(_LOGGING))
        command: list[str | Path] = [
            python,
            INSIDE / "kserve_server.py",
            "--http_port",
            str(http),
            "--grpc_port",
            str(grpc),
        ]
        command += ["--workers", str(setting["workers"]), "--enable_latency_logging", "false"]
        command += ["--log_config_file", folder / "logging.json"]
        with running(
            command,
            folder=folder,
            environment={
                "BENCHMARK_GRAPH": str(workload.graph),
                "BENCHMARK_THREADS": str(setting["threads"]),
                "BENCHMARK_EXECUTORS": str(setting["executors"]),
            },
            ready=lambda: answers(f"http://127.0.0.1:{http}/v2/models/{_MODEL}/ready") and listens(grpc),
        ):
            path = f"/v2/models/{_MODEL}/infer"
            yield [Endpoint(http, OipJson(path)), Endpoint(http, OipBinary(path)), Endpoint(grpc, OipGrpc(_MODEL))]
