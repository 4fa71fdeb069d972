"""`serveprune serve` as a process of its own, as an operator runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import psutil

from e2e.served import PATIENCE_SECONDS as PATIENCE_SECONDS
from e2e.served import Served

_MARK = "SERVEPRUNE_TEST_FOLDER"

COMMAND = (sys.executable, "-m", "serveprune")


def wait_until(condition: Callable[[], bool], *, what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Tell whether a process still runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked_environment(folder: Path) -> dict[str, str]:
    """Return this environment with a mark in it, which all processes that descend from its user inherit."""
    return {**os.environ, _MARK: str(folder)}


def marked_processes(folder: Path) -> list[int]:
    """Return the processes that carry the mark of this folder and still run."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(_MARK) == str(folder)
        except psutil.Error:
            continue
        if marked and is_alive(process.pid):
            found.append(process.pid)
    return found


class ServerProcess(Served):
    """A running server on free ports, its log, and clients of it."""

    def __init__(
        self,
        config: Path,
        *,
        environment: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        on_free_ports: bool = True,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """Start; `wait_open` waits until all ports are open. Not on free ports it listens where config or options say.

        All its processes are marked with the folder of the config, so that what it leaves behind can be found.
        """
        self.folder = config.parent
        self.log_file = config.parent / "server.log"
        self._endpoints_file = config.parent / "endpoints.json"
        self._endpoints_file.unlink(missing_ok=True)
        fronts = ("http", "grpc", "metrics") if on_free_ports else ()
        addresses = [word for front in fronts for word in (f"--{front}", "127.0.0.1:0")]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "serve", str(config), *addresses, "--endpoints-file", str(self._endpoints_file), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**marked_environment(self.folder), **(environment or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def wait_open(self) -> Self:
        def is_open() -> bool:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            return self._endpoints_file.exists()

        wait_until(is_open, what="the server is open")
        return self

    @cached_property
    def endpoints(self) -> dict[str, str]:
        addresses: dict[str, str] = json.loads(self._endpoints_file.read_text(encoding="utf-8"))
        return addresses

    def wait_state(self, model: str, tier: str, state: str) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []

        def is_there() -> bool:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            seen.append(self.tiers(model)[tier])
            ended = seen[-1]["state"] in ("ready", "refused", "failed")
            assert not ended or seen[-1]["state"] == state, f"{seen[-1]}\n{self.log}"
            return bool(seen[-1]["state"] == state)

        wait_until(is_there, what=f"{model}@{tier} is {state}")
        return seen[-1]

    def wait_ready(self, *models: str) -> Self:
        for model in models:
            for tier in self.tiers(model):
                self.wait_state(model, tier, "ready")
        return self

    def build_child(self) -> psutil.Process:
        """Wait for the process that builds, and return it."""
        found: list[psutil.Process] = []

        def is_there() -> bool:
            for child in psutil.Process(self.pid).children():
                try:
                    if "serveprune.compression.worker" in child.cmdline():
                        found.append(child)
                except psutil.Error:
                    continue
            return bool(found)

        wait_until(is_there, what="a build has begun")
        return found[0]

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def end(self) -> None:
        """Leave nothing running."""
        self.close_clients()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the server did not stop when asked:\n{self.log}") from None
