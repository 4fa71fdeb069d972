"""serveprune on Ray Serve, as an operator runs it: two nodes, and `serve run` of `deploy/ray/serve.yaml`."""

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
import psutil
import pytest
import yaml
from google.protobuf.message import Message
from prometheus_client.parser import text_string_to_metric_families

from e2e.server_process import (
    PATIENCE_SECONDS,
    GrpcRefusal,
    is_alive,
    marked_environment,
    marked_processes,
    wait_until,
)
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub

ROOT = Path(__file__).resolve().parents[3]
SERVE_FILE = ROOT / "deploy" / "ray" / "serve.yaml"
_TITLE = "ray::ServeReplica:serveprune:"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's word for loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


class HostedOnRay:
    """Two nodes with the application. All processes are marked with the folder, so that none is left behind."""

    def __init__(self, config: Path, **arguments: Any) -> None:
        """Start the nodes; `deploy` starts the application.

        Args:
            config: `serveprune.yaml`.
            **arguments: Of the application, beside it.
        """
        if importlib.util.find_spec("ray") is None:
            pytest.skip('Ray is missing: pip install "serveprune[ray]"')
        self.folder = config.parent
        self._environment = {**marked_environment(self.folder), **_ENVIRONMENT}
        self.http_port, self.grpc_port, self.metrics_port = _free_ports(3)
        self._document: dict[str, Any] = yaml.safe_load(SERVE_FILE.read_text(encoding="utf-8"))
        self._document["http_options"] |= {"host": "127.0.0.1", "port": self.http_port}
        self._document["grpc_options"] |= {"port": self.grpc_port}
        self._document["proxy_location"] = "HeadOnly"
        (self._application,) = self._document["applications"]
        metrics = f"127.0.0.1:{self.metrics_port}"
        self._application["args"] |= {"config": str(config), "metrics": metrics, **arguments}
        self._log_file = self.folder / "nodes.log"
        with self._log_file.open("wb") as log:
            self._nodes = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("two_nodes.py")), "4", "4"],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.channel.close()
        self._nodes.communicate(timeout=PATIENCE_SECONDS)
        left = [psutil.Process(pid) for pid in marked_processes(self.folder)]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=PATIENCE_SECONDS)

    @cached_property
    def address(self) -> str:
        """Where the head is."""
        assert self._nodes.stdout is not None
        address = self._nodes.stdout.readline().strip()
        assert address, self._log_file.read_text(encoding="utf-8")
        return address

    def wait_running(self) -> Self:
        """Wait until there is somebody to answer."""

        def is_live() -> bool:
            try:
                return self.http.get("/v2/health/live").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_live, what="the application is live")
        return self

    def deploy(self, user_config: Mapping[str, Any] | None = None) -> Self:
        """Run `serve run` to its end; the application is started, or changed, after that."""
        (ingress,) = self._application["deployments"]
        ingress["user_config"] = dict(user_config or {})
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self._document), encoding="utf-8")
        finished = subprocess.run(
            [Path(sys.executable).with_name("serve"), "run", "--non-blocking", "--address", self.address, file],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
        )
        assert finished.returncode == 0, finished.stdout[-8000:]
        return self

    def replicas(self, deployment: str) -> list[int]:
        """Return the processes of a deployment."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            titles = process.info["cmdline"] or [""]
            if titles[0].startswith(f"{_TITLE}{deployment}") and process.pid in self._marked:
                found.append(process.pid)
        return [pid for pid in found if is_alive(pid)]

    @property
    def _marked(self) -> set[int]:
        return set(marked_processes(self.folder))

    @cached_property
    def http(self) -> httpx.Client:
        url = f"http://127.0.0.1:{self.http_port}"
        return httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False)

    @cached_property
    def channel(self) -> Any:
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options)

    @cached_property
    def stub(self) -> Any:
        return GRPCInferenceServiceStub(self.channel)

    def grpc_refusal(self, message: Message, *, metadata: Sequence[tuple[str, str]] = ()) -> GrpcRefusal:
        """Send an inference that must be refused."""
        try:
            self.stub.ModelInfer(message, metadata=metadata)
        except grpc.RpcError as raised:
            error: Any = raised
            return GrpcRefusal(error.code(), error.details(), dict(error.trailing_metadata()))
        raise AssertionError("the application answered what it should refuse")

    def states(self, model: str) -> dict[str, str]:
        """Return tier -> state."""
        answer = self.http.get(f"/v2/models/{model}/tiers")
        assert answer.status_code == 200, answer.text
        return {tier["tier"]: tier["state"] for tier in answer.json()["tiers"]}

    def wait_ready(self, *models: str) -> Self:
        """Wait until all tiers of models serve."""
        for model in models:

            def are_ready(model: str = model) -> bool:
                states = self.states(model)
                assert not {"failed", "refused"} & set(states.values()), self.http.get(f"/v2/models/{model}/tiers").text
                return set(states.values()) == {"ready"}

            wait_until(are_ready, what=f"{model} is ready")
        return self

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of the ingress that have at least these labels."""
        page = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False, timeout=20).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def _free_ports(count: int) -> list[int]:
    # Ray's proxies take no port 0.
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
