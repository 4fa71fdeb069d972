"""A container that serves, confined as an operator would confine it."""

import subprocess
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families

from e2e.containers.engine import Engine
from e2e.server_process import PATIENCE_SECONDS, wait_until
from serveprune.frontends.grpc.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub

MEMORY = "3g"
PYTHON = "/opt/serveprune/bin/python"
THIS_MACHINE = "10.0.2.2"
"""The loopback of the machine that runs them, for containers that are allowed to reach it."""

REACHES_THIS_MACHINE = "slirp4netns:allow_host_loopback=true"

_CONFINED = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--memory", MEMORY),
    # No shell: neither needs one.
    *("--volume", "/dev/null:/usr/bin/dash:ro", "--volume", "/dev/null:/usr/bin/bash:ro"),
)
_PORTS = {"http": 8080, "grpc": 8081, "metrics": 8082}


class Container:
    """A running container, and clients of it."""

    def __init__(
        self,
        engine: Engine,
        image: str,
        *,
        config: Path,
        store: str,
        network: str = "slirp4netns",
        options: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        """Start one.

        Args:
            engine: Has the image.
            image: Its name.
            config: Folder that is mounted where the image looks for its config.
            store: Volume of the store.
            network: What it is connected to.
            options: More of `podman run`.
            arguments: In place of the image's own.
        """
        self._engine = engine
        self.name = engine.run(
            *("podman", "run", "--detach", "--network", network, *_CONFINED, *options),
            *(word for port in _PORTS.values() for word in ("--publish", f"127.0.0.1::{port}")),
            *("--volume", f"{config}:/etc/serveprune:ro", "--volume", f"{store}:/var/lib/serveprune"),
            *(image, *arguments),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in {"http", "channel"} & self.__dict__.keys():
            self.__dict__[name].close()
        self._engine.run("podman", "rm", "--force", "--time", "30", self.name)

    @cached_property
    def addresses(self) -> dict[str, str]:
        return {name: self._engine.run("podman", "port", self.name, port) for name, port in _PORTS.items()}

    @cached_property
    def http(self) -> httpx.Client:
        url = f"http://{self.addresses['http']}"
        return httpx.Client(base_url=url, timeout=3 * PATIENCE_SECONDS, trust_env=False)

    @cached_property
    def channel(self) -> Any:
        return grpc.insecure_channel(self.addresses["grpc"], options=[("grpc.enable_http_proxy", 0)])

    @cached_property
    def stub(self) -> Any:
        return GRPCInferenceServiceStub(self.channel)

    @property
    def log(self) -> str:
        logged = self._engine.tried("podman", "logs", self.name)
        return logged.stdout + logged.stderr

    def inspect(self, what: str) -> str:
        return self._engine.run("podman", "inspect", "--format", what, self.name)

    def wait(self, condition: Callable[[], bool], *, what: str) -> Self:
        def is_there() -> bool:
            assert self.inspect("{{.State.Running}}") == "true", f"the container ended:\n{self.log}"
            try:
                return condition()
            except httpx.TransportError:
                return False

        wait_until(is_there, what=what)
        return self

    def wait_settled(self, model: str, state: str) -> Self:
        def is_there() -> bool:
            states = {tier["state"] for tier in self.tiers(model)}
            assert not states & ({"ready", "refused", "failed"} - {state}), self.log
            return states == {state}

        return self.wait(is_there, what=f"all tiers of {model} are {state}")

    def tiers(self, model: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/v2/models/{model}/tiers")
        assert answer.status_code == 200, answer.text
        tiers: list[dict[str, Any]] = answer.json()["tiers"]
        return tiers

    def metric(self, name: str, **labels: str) -> float:
        page = httpx.get(f"http://{self.addresses['metrics']}/metrics", trust_env=False, timeout=20).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def health(self, *words: str) -> int:
        """Ask as a probe does that runs a command in the container."""
        return self.exec("/opt/serveprune/bin/serveprune", "health", *words).returncode

    def exec(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self._engine.tried("podman", "exec", self.name, *words)

    def said_by_python(self, code: str) -> str:
        finished = self.exec(PYTHON, "-c", code)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def stop(self, *, seconds: int) -> int:
        """Stop as an orchestrator does, and return the exit code."""
        self._engine.run("podman", "stop", "--time", seconds, self.name, timeout=seconds + 60)
        return int(self.inspect("{{.State.ExitCode}}"))
