"""LitServe 0.2.19.

What its documentation recommends, and what was chosen:

- `workers_per_device`: "For CPU, set to the number of cores available on the machine": two, of one thread each.
- `num_api_servers`: by default as many as workers, "recommended"; also one, for two cores are few for four processes.
- `fast_queue`: "Use when serving hundreds of requests per second": on.
- "Batching": `max_batch_size` and `batch_timeout`; both ways are in `SETTINGS`.
- `log_level="warning"`, "good for production": no access logs.
- HTTP with JSON of one's own only: neither gRPC nor the Open Inference Protocol.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving_peers.peer import INSIDE, Endpoint, Setting
from serving_peers.server_process import answers, free_ports, running
from serving_workloads import Workload
from wire_formats import PlainJson

SETTINGS: Mapping[str, Setting] = {
    "single": {"workers": 2, "threads": 1, "api_servers": 2, "batch_size": 1, "batch_seconds": 0},
    "batched": {"workers": 2, "threads": 1, "api_servers": 2, "batch_size": 16, "batch_seconds": 0.002},
    "single-1-api": {"workers": 2, "threads": 1, "api_servers": 1, "batch_size": 1, "batch_seconds": 0},
}


class LitServe:
    """FastAPI in front of worker processes; JSON only."""

    name = "litserve"
    needs_torch = False
    settings = SETTINGS

    @contextmanager
    def serve(
        self, workload: Workload, setting: Setting, *, folder: Path, python: Path
    ) -> Iterator[Sequence[Endpoint]]:
        """See `Peer.serve`."""
        (port,) = free_ports(1)
        command: list[str | Path] = [python, INSIDE / "litserve_server.py", "--port", str(port), "--fast-queue"]
        command += ["--workers", str(setting["workers"]), "--api-servers", str(setting["api_servers"])]
        command += ["--batch-size", str(setting["batch_size"]), "--batch-timeout", str(setting["batch_seconds"])]
        with running(
            command,
            folder=folder,
            environment={"BENCHMARK_GRAPH": str(workload.graph), "BENCHMARK_THREADS": str(setting["threads"])},
            ready=lambda: answers(f"http://127.0.0.1:{port}/health"),
        ):
            yield [Endpoint(port, PlainJson("/predict"))]
