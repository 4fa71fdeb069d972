"""serveprune, from this checkout and with the Python that runs the benchmark.

Each setting is what differs from the defaults in the section `server` of its config. Two executors of one thread each
are the default on two cores; they are written out so that the table does not depend on the machine.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from serving_peers.peer import Endpoint, Setting
from serving_peers.server_process import answers, running
from serving_workloads import Workload
from wire_formats import OipBinary, OipGrpc, OipJson

_CHECKOUT = Path(__file__).parents[3]
_PROBES = 16

SETTINGS: Mapping[str, Setting] = {
    "defaults": {"executors": 2, "threads_per_executor": 1},
    "2 processes": {"executors": 2, "threads_per_executor": 1, "processes": 2},
}


class ServePrune:
    """JSON, binary and gRPC of the Open Inference Protocol."""

    name = "serveprune"
    needs_torch = False
    settings = SETTINGS

    @contextmanager
    def serve(
        self, workload: Workload, setting: Setting, *, folder: Path, python: Path
    ) -> Iterator[Sequence[Endpoint]]:
        """See `Peer.serve`; ``python`` is not used."""
        addresses = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0")
        config = yaml.safe_load(workload.config.read_text())
        config["server"] = {**addresses, **setting}
        (folder / "serveprune.yaml").write_text(yaml.safe_dump(config))
        file = folder / "endpoints.json"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "serveprune",
            "serve",
            folder / "serveprune.yaml",
            "--endpoints-file",
            file,
        ]

        def ready() -> bool:
            if not file.exists():
                return False
            address = json.loads(file.read_text())["http"]
            # Each connection is answered for by one process, so that several say whether all are.
            return all(answers(f"http://{address}/v2/models/{workload.name}/ready") for _ in range(_PROBES))

        with running(command, folder=folder, environment={"PYTHONPATH": str(_CHECKOUT)}, ready=ready):
            found = json.loads(file.read_text())
            http, grpc = (int(found[front].rpartition(":")[2]) for front in ("http", "grpc"))
            path = f"/v2/models/{workload.name}/infer"
            yield [
                Endpoint(http, OipJson(path)),
                Endpoint(http, OipBinary(path)),
                Endpoint(grpc, OipGrpc(workload.name)),
            ]
