"""The admin API over sockets, of rollouts and a config file that are real, and clients of it."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import onnx
import yaml
from onnx import TensorProto, helper

from serveprune.administration.admin_server import AdminServer
from serveprune.config.deployment import DeploymentConfig
from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig
from serveprune.config.security import TlsConfig
from serveprune.config.server import ServerConfig
from serveprune.frontends.grpc.pb.serveprune_admin_pb2_grpc import AdminServiceStub
from serveprune.observability.metrics import Metrics
from serveprune.reloading.config_file import ConfigFile
from serveprune.reloading.reloader import Reloader
from serveprune.rollouts.canary import side_bounds
from serveprune.rollouts.latency_counts import LatencyCounts
from serveprune.rollouts.rollouts import Observation, Rollouts
from serveprune.rollouts.window import Counts

TOKEN = "an-operators-own-token-01"
STRANGE = "nobody-knows-this-token-02"
CANARY = {
    "tier": "int8",
    "steps": [{"setWeight": 20}, {"pause": "10m"}, {"setWeight": 50}, {"pause": {}}],
    "guards": {"max_error_ratio": 0.01, "min_samples": 30},
}
DEPLOYMENT = DeploymentConfig.model_validate({"canary": CANARY})


class Administered:
    """A running admin API; rollouts move when `tick` is called."""

    def __init__(
        self, folder: Path, *, models: tuple[str, ...] = ("fashion",), tls: TlsConfig | None = None, **limits: Any
    ) -> None:
        self.folder, self.metrics = folder, Metrics()
        self.now = 0.0
        self.rollouts: Rollouts | None = Rollouts(folder / "store", self.metrics, clock=lambda: self.now)
        self.rollouts.deploy(dict.fromkeys(models, DEPLOYMENT))
        self.looks = 0
        self.applied: list[ServePruneConfig] = []
        self.failure: Exception | None = None
        self.may_apply = threading.Event()
        self.may_apply.set()
        self.token_file = folder / "tokens"
        self.token_file.write_text(TOKEN)
        self.config_file = folder / "serveprune.yaml"
        _write_relu(folder / "relu.onnx")
        self.write_config()
        self.reloader = Reloader(
            ConfigFile(self.config_file),
            load_config(self.config_file),
            read=lambda: load_config(self.config_file),
            apply=self.apply,
            metrics=self.metrics,
        )
        server = ServerConfig.model_validate(
            {
                "admin": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "tokens": {"file": str(self.token_file)}},
                "tls": tls,
                **limits,
            }
        )
        assert server.admin is not None
        self.admin = AdminServer(
            server.admin,
            self,
            self.reloader,
            server=server,
            store=folder / "store",
            metrics=self.metrics,
            environment=os.environ,
        )
        self.endpoints = self.admin.start()

    def look_now(self) -> None:
        self.looks += 1

    def apply(self, config: ServePruneConfig) -> None:
        assert self.may_apply.wait(20)
        if self.failure is not None:
            raise self.failure
        self.applied.append(config)

    def write_config(self, text: str | None = None, **sections: Any) -> None:
        document = {"models": {"relu": {"source": {"onnx": "relu.onnx"}}}, **sections}
        self.config_file.write_text(text if text is not None else yaml.safe_dump(document))

    def tick(self, *, now: float, answered: int = 0, errors: int = 0, model: str = "fashion") -> None:
        """Let time pass, in which the canary answered so many requests."""
        assert self.rollouts is not None
        self.now = now
        assert DEPLOYMENT.canary is not None
        bounds = side_bounds(DEPLOYMENT.canary)
        canary = Counts(errors, LatencyCounts.of([0.01] * answered, bounds))
        observation = Observation("int8", "f" * 64, canary, Counts(0, LatencyCounts.of([], bounds)))
        self.rollouts.tick({model: observation})

    @property
    def url(self) -> str:
        return f"http://{self.endpoints.http}"

    @contextlib.contextmanager
    def client(self, token: str | None = TOKEN) -> Iterator[httpx.Client]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False) as client:
            yield client

    @contextlib.contextmanager
    def stub(self) -> Iterator[Any]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(str(self.endpoints.grpc), options=options) as channel:
            yield AdminServiceStub(channel)

    def audit(self) -> list[Mapping[str, Any]]:
        file = self.folder / "store" / "audit.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def counted(self, operation: str, code: str) -> float:
        labels = {"operation": operation, "code": code}
        return self.metrics.registry.get_sample_value("serveprune_admin_requests_total", labels) or 0.0

    def close(self) -> None:
        self.may_apply.set()
        self.admin.stop()
        self.reloader.stop()
        if self.rollouts is not None:
            self.rollouts.close()


@contextlib.contextmanager
def administered(folder: Path, **options: Any) -> Iterator[Administered]:
    running = Administered(folder, **options)
    try:
        yield running
    finally:
        running.close()


def _write_relu(file: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
