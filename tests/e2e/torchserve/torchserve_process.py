"""A TorchServe as a process of its own, as an operator runs it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import grpc
import httpx
import psutil

from e2e.server_process import PATIENCE_SECONDS, is_alive, marked_environment, marked_processes, wait_until

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 400.0
_PYTHON_VARIABLE = "SERVEPRUNE_TORCHSERVE_PYTHON"
_BUILD = "serveprune.compression.worker"

_PROPERTIES = """\
inference_address=http://127.0.0.1:{inference}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_address=127.0.0.1
grpc_management_address=127.0.0.1
grpc_inference_port={grpc}
grpc_management_port={grpc_management}
model_store={store}
load_models=all
disable_system_metrics=true
default_workers_per_model=1
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
    <Logger name="MODEL_LOG" level="info"/>
  </Loggers>
</Configuration>
"""
_PORTS = ("inference", "management", "metrics", "grpc", "grpc_management")


def torchserve_python() -> Path:
    """Return the interpreter that TorchServe is installed for, whether it is there or not."""
    named = os.environ.get(_PYTHON_VARIABLE)
    beside = [Path(named)] if named else [ROOT / ".venv-torchserve" / "bin" / "python", Path(sys.executable)]
    return next((python for python in beside if (python.parent / "torchserve").exists()), beside[0])


def what_is_missing() -> str | None:
    """Return what keeps TorchServe from running here; ``None`` if nothing does."""
    if shutil.which("java") is None:
        return "TorchServe needs Java 17: apt-get install openjdk-17-jre-headless"
    python = torchserve_python()
    if not (python.parent / "torchserve").exists():
        return f"{python.parent / 'torchserve'} is missing: pip install torchserve==0.12.0 torch-model-archiver==0.12.0"
    return None


class TorchServeProcess:
    """A running TorchServe on free ports, its log, and clients of it.

    All its processes are marked with its folder, so that what it leaves behind can be found.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start it over the archives in ``folder/store``; `wait_ready` waits for the workers of a model."""
        self.folder = folder
        self._log_file = folder / "torchserve.log"
        self.ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        properties = folder / "config.properties"
        properties.write_text(_PROPERTIES.format(store=folder / "store", **self.ports), encoding="utf-8")
        (folder / "log4j2.xml").write_text(_LOGGING, encoding="utf-8")
        # Its files for sockets and the process id have fixed names.
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        own = {name: str(temporary) for name in ("TMPDIR", "TEMP")}
        own |= {name: str(folder / "logs") for name in ("LOG_LOCATION", "METRICS_LOCATION")}
        own["PYTHONPATH"] = str(ROOT)
        command: list[str | Path] = [torchserve_python().parent / "torchserve", "--start", "--foreground"]
        command += ["--disable-token-auth", "--enable-model-api", "--no-config-snapshots"]
        command += ["--ts-config", properties, "--log-config", folder / "log4j2.xml"]
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**marked_environment(folder), **own, **environment},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.ports['inference']}", timeout=PATIENCE_SECONDS, trust_env=False
        )

    @cached_property
    def management(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.ports['management']}", timeout=PATIENCE_SECONDS, trust_env=False
        )

    @cached_property
    def channel(self) -> Any:
        return grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}", options=[("grpc.enable_http_proxy", 0)])

    def wait_ready(self, *models: str) -> Self:
        """Wait for all workers of the models: `/ping` says that all is well before they are there."""

        def is_ready(model: str) -> bool:
            assert self.process.poll() is None, f"TorchServe ended with {self.process.returncode}:\n{self.log}"
            workers = self.workers(model)
            return bool(workers) and all(worker["status"] == "READY" for worker in workers)

        for model in models:
            try:
                wait_until(lambda model=model: is_ready(model), what=f"{model} is ready", seconds=START_SECONDS)  # type: ignore[misc]
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log[-8000:]}") from None
        return self

    def workers(self, model: str) -> list[dict[str, Any]]:
        try:
            answer = self.management.get(f"/models/{model}")
        except httpx.TransportError:
            return []
        workers: list[dict[str, Any]] = answer.json()[0]["workers"] if answer.status_code == 200 else []
        return workers

    def worker_pids(self, model: str) -> list[int]:
        return [worker["pid"] for worker in self.workers(model) if worker["pid"] > 0]

    def ask(self, model: str, *, path: str = "", **request: Any) -> httpx.Response:
        return self.http.post(f"/predictions/{model}{path}", **request)

    def ask_at_once(self, model: str, requests: Sequence[Mapping[str, Any]]) -> list[httpx.Response]:
        """Send requests at the same time, so that TorchServe makes batches of them."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: self.ask(model, **request), requests))

    def builds(self) -> list[psutil.Process]:
        """Return the processes that build."""
        return [process for process in self._processes() if _BUILD in _command(process)]

    def wait_build(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found[:] = self.builds()
            return bool(found)

        wait_until(is_there, what="a build has begun")
        return found

    def _processes(self) -> list[psutil.Process]:
        found = []
        for pid in marked_processes(self.folder):
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        return found

    def stop(self) -> None:
        """Stop it, and see to it that nothing is left running."""
        for name in ("http", "management", "channel"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
        for process in self._processes():
            # The script that starts it hands no signal on.
            if "org.pytorch.serve.ModelServer" in _command(process):
                process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_SECONDS)
            wait_until(lambda: not marked_processes(self.folder), what="all its processes are gone", seconds=60)
        finally:
            for process in self._processes():
                process.kill()
            if is_alive(self.process.pid):
                self.process.kill()
            self.process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
