"""serveprune on Ray Serve, as an operator runs it: two nodes, and `serve run` of `deploy/ray/serve.yaml`."""

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest
import yaml

from e2e.served import PATIENCE_SECONDS, Served
from e2e.server_process import is_alive, marked_environment, marked_processes, wait_until

ROOT = Path(__file__).resolve().parents[3]
SERVE_FILE = ROOT / "deploy" / "ray" / "serve.yaml"
_FRONTS = ("http", "grpc", "metrics")
_TITLE = "ray::ServeReplica:serveprune:"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's word for loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


class HostedOnRay(Served):
    """Two nodes with the application. All processes are marked with the folder, so that none is left behind."""

    def __init__(self, config: Path, **arguments: Any) -> None:
        """Start the nodes; `deploy` starts the application.

        Args:
            config: `serveprune.yaml`, which need not be there before that.
            **arguments: Of the application, beside it.
        """
        if importlib.util.find_spec("ray") is None:
            pytest.skip('Ray is missing: pip install "serveprune[ray]"')
        self.folder = config.parent
        http, grpc, metrics = _free_ports(3)
        self._addresses = {name: f"127.0.0.1:{port}" for name, port in zip(_FRONTS, (http, grpc, metrics), strict=True)}
        self._document: dict[str, Any] = yaml.safe_load(SERVE_FILE.read_text(encoding="utf-8"))
        self._document["http_options"] |= {"host": "127.0.0.1", "port": http}
        self._document["grpc_options"] |= {"port": grpc}
        self._document["proxy_location"] = "HeadOnly"
        (self._application,) = self._document["applications"]
        self._application["args"] |= {"config": str(config), "metrics": self.endpoints["metrics"], **arguments}
        self._deployments: dict[str, dict[str, Any]] = {"ingress": {"user_config": {}}}
        self._log_file = self.folder / "nodes.log"
        with self._log_file.open("wb") as log:
            self._nodes = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("two_nodes.py")), "4", "4"],
                env={**marked_environment(self.folder), **_ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._have_started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_clients()
        self._nodes.communicate(timeout=PATIENCE_SECONDS)
        left = [psutil.Process(pid) for pid in marked_processes(self.folder)]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=PATIENCE_SECONDS)

    @property
    def endpoints(self) -> Mapping[str, str]:
        return self._addresses

    def deploy(self, user_config: Mapping[str, Any] | None = None, **options: Mapping[str, Any]) -> Self:
        """Run `serve run` to its end; the application is started, or changed, after that.

        Args:
            user_config: Of the ingress; default: as before.
            **options: Of deployments, in place of those before.
        """
        if not self._have_started:
            assert self._answer() == "started", self._log
            self._have_started = True
        for name, said in options.items():
            self._deployments.setdefault(name, {}).update(said)
        if user_config is not None:
            self._deployments["ingress"]["user_config"] = dict(user_config)
        self._application["deployments"] = [{"name": name, **said} for name, said in self._deployments.items()]
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self._document), encoding="utf-8")
        assert self._nodes.stdin is not None
        self._nodes.stdin.write(f"{file}\n")
        self._nodes.stdin.flush()
        assert self._answer() == "submitted", self._log
        return self

    def _answer(self) -> str:
        assert self._nodes.stdout is not None
        return self._nodes.stdout.readline().strip()

    @property
    def _log(self) -> str:
        return self._log_file.read_text(encoding="utf-8")[-8000:]

    def wait_running(self) -> Self:
        """Wait until there is somebody to answer."""

        def is_live() -> bool:
            try:
                return self.http.get("/v2/health/live").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_live, what="the application is live")
        return self

    def metrics_text(self) -> str:
        """Return the page, for which one that took the place of another ingress waits until the port is free."""
        found: list[str] = []

        def is_there() -> bool:
            try:
                found.append(super(HostedOnRay, self).metrics_text())
            except httpx.TransportError:
                return False
            return True

        wait_until(is_there, what="the ingress has its port for metrics")
        return found[0]

    def replicas(self, deployment: str) -> list[int]:
        """Return the processes of a deployment."""
        marked = set(marked_processes(self.folder))
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            titles = process.info["cmdline"] or [""]
            if titles[0].startswith(f"{_TITLE}{deployment}") and process.pid in marked:
                found.append(process.pid)
        return [pid for pid in found if is_alive(pid)]

    def states(self, model: str) -> dict[str, str]:
        """Return tier -> state."""
        return {name: tier["state"] for name, tier in self.tiers(model).items()}

    def wait_ready(self, *models: str) -> Self:
        """Wait until all tiers of models serve."""
        for model in models:

            def are_ready(model: str = model) -> bool:
                states = self.states(model)
                assert not {"failed", "refused"} & set(states.values()), self.tiers(model)
                return set(states.values()) == {"ready"}

            wait_until(are_ready, what=f"{model} is ready")
        return self


def _free_ports(count: int) -> list[int]:
    # Ray's proxies take no port 0.
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
