"""Servers of two processes, and what their tests ask them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import httpx
import numpy as np
import psutil

from e2e.deployment import write_config
from e2e.graphs import SLOW_WIDTH, write_contract_models, write_slow_model
from e2e.server_process import ServerProcess, is_alive, wait_until

CONNECTIONS = 24
"""With two processes, one of them gets none of so many once in eight million times."""

ADD_INPUTS = {name: np.arange(3, dtype=np.float32).reshape(1, 3) for name in ("a", "b")}
ADD_REQUEST = {
    "inputs": [{"name": name, "datatype": "FP32", "shape": [1, 3], "data": [0, 1, 2]} for name in ("a", "b")]
}


def write_models(
    folder: Path, *, store: Path | None = None, server: Mapping[str, object] = MappingProxyType({})
) -> Path:
    write_contract_models(folder)
    write_slow_model(folder / "slow.onnx")
    return write_config(
        folder,
        store={"path": str(store or folder / "store")},
        server={"processes": 2, "executors": 2, **server},
        models={name: {"source": {"onnx": f"{name}.onnx"}, "tiers": ["dense"]} for name in ("add", "slow")},
    )


def wait_both(server: ServerProcess) -> ServerProcess:
    def all_ready() -> bool:
        assert server.process.poll() is None, server.log
        ready = [server.metric("serveprune_tier_ready", model=model) == 1 for model in ("add", "slow")]
        return all(ready) and server.metric("serveprune_processes") == 2

    wait_until(all_ready, what="both processes serve both models")
    return server


def serving_processes(server: ServerProcess) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(server.pid).children()
        if is_alive(child.pid) and "serveprune.cli.serving_process" in child.cmdline()
    ]


def ask_add(server: ServerProcess) -> httpx.Response:
    """Send one request over a connection of its own."""
    return httpx.post(f"{server.url}/v2/models/add/infer", json=ADD_REQUEST, trust_env=False, timeout=60)


def ask_slow(server: ServerProcess, steps: int) -> httpx.Response:
    inputs = [
        {"name": "steps", "datatype": "INT64", "shape": [1], "data": [steps]},
        {"name": "x", "datatype": "FP32", "shape": [1, SLOW_WIDTH], "data": [1.0] * SLOW_WIDTH},
    ]
    url = f"{server.url}/v2/models/slow/infer"
    return httpx.post(url, json={"inputs": inputs}, trust_env=False, timeout=120)
