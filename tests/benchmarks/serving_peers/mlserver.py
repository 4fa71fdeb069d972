"""MLServer 1.7.1.

What its documentation recommends, and what was chosen:

- user-guide/custom.md: a custom runtime, since it has none for ONNX; the "advanced interface" with its numpy codec.
- user-guide/adaptive-batching.md: off by default, "since these values are usually found through experimentation"; both
  are in `SETTINGS`.
- user-guide/parallel-inference.md: a pool of processes, which "can be particularly noticeable for lightweight inference
  methods", where it may be switched off; then batches are computed in the main process, in threads that leave its event
  loop free. Both are in `SETTINGS`.
- Compression of answers is off (no client here asks for it), and `debug` too, which also switches off access logs.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving_peers.peer import INSIDE, Endpoint, Setting
from serving_peers.server_process import answers, free_ports, listens, running
from serving_workloads import Workload
from wire_formats import OipGrpc, OipJson

_MODEL = "benchmark"

SETTINGS: Mapping[str, Setting] = {
    "in-process": {"workers": 0, "executors": 0, "threads": 1, "batch_size": 0, "batch_seconds": 0},
    "in-process+batched": {"workers": 0, "executors": 2, "threads": 1, "batch_size": 16, "batch_seconds": 0.002},
    "parallel": {"workers": 2, "executors": 0, "threads": 1, "batch_size": 0, "batch_seconds": 0},
    "parallel+batched": {"workers": 2, "executors": 0, "threads": 1, "batch_size": 16, "batch_seconds": 0.002},
}


class MlServer:
    """JSON and gRPC of the Open Inference Protocol; no binary extension over HTTP."""

    name = "mlserver"
    needs_torch = False
    settings = SETTINGS

    @contextmanager
    def serve(
        self, workload: Workload, setting: Setting, *, folder: Path, python: Path
    ) -> Iterator[Sequence[Endpoint]]:
        """See `Peer.serve`."""
        http, grpc, metrics = free_ports(3)
        server = {
            "host": "127.0.0.1",
            "http_port": http,
            "grpc_port": grpc,
            "metrics_port": metrics,
            "parallel_workers": setting["workers"],
            "gzip_enabled": False,
            "debug": False,
        }
        model = {
            "name": _MODEL,
            "implementation": "mlserver_runtime.OnnxRuntime",
            "max_batch_size": setting["batch_size"],
            "max_batch_time": setting["batch_seconds"],
            "parameters": {
                "uri": str(workload.graph),
                "extra": {"threads": setting["threads"], "executors": setting["executors"]},
            },
        }
        (folder / "settings.json").write_text(json.dumps(server))
        (folder / "model-settings.json").write_text(json.dumps(model))
        for file in ("mlserver_runtime.py", "onnx_graph.py"):
            shutil.copyfile(INSIDE / file, folder / file)
        with running(
            [python.parent / "mlserver", "start", folder],
            folder=folder,
            # Workers import the runtime anew, without the folder on their path.
            environment={"PYTHONPATH": str(folder)},
            ready=lambda: answers(f"http://127.0.0.1:{http}/v2/models/{_MODEL}/ready") and listens(grpc),
        ):
            yield [Endpoint(http, OipJson(f"/v2/models/{_MODEL}/infer")), Endpoint(grpc, OipGrpc(_MODEL))]
