"""`serveprune torchserve` as an operator runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx
import pytest

from e2e.server_process import PATIENCE_SECONDS, marked_environment, marked_processes, wait_until

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 400.0
PORTS = ("inference", "management", "metrics", "grpc", "grpc-management")
_PYTHON_VARIABLE = "SERVEPRUNE_TORCHSERVE_PYTHON"


def hosting_python() -> Path:
    """Return the interpreter that TorchServe is installed for; skip the test if there is none, or no Java."""
    named = os.environ.get(_PYTHON_VARIABLE)
    places = [Path(named)] if named else [ROOT / ".venv-torchserve" / "bin" / "python", Path(sys.executable)]
    found = next((python for python in places if (python.parent / "torchserve").exists()), None)
    if found is None:
        pytest.skip('TorchServe is missing: pip install "serveprune[torchserve]"')
    if shutil.which("java") is None:
        pytest.skip("TorchServe needs Java 17: apt-get install openjdk-17-jre-headless")
    return found


def command(
    *words: str | Path, folder: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run `serveprune torchserve ...` in a folder to its end."""
    return subprocess.run(
        [hosting_python(), "-m", "serveprune", "torchserve", *words],
        cwd=folder,
        env={**_environment(folder), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )


def package(config: Path, model: str, *options: str) -> None:
    """Write an archive into the folder `models` beside a config."""
    words: list[str | Path] = ["package", "--config", config, "--model", model, "--out", config.parent / "models"]
    finished = command(*words, *options, folder=config.parent)
    assert finished.returncode == 0, finished.stderr


class HostedTorchServe:
    """A running `serveprune torchserve run` over the archives in `models`, on free ports.

    Its processes are marked with the folder, so that what it leaves behind can be found.
    """

    def __init__(self, folder: Path, *options: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self.folder = folder
        self._endpoints_file = folder / "endpoints.json"
        self._log_file = folder / "run.log"
        ports = [word for name in PORTS for word in (f"--{name}", "127.0.0.1:0")]
        places = ["--model-store", "models", "--folder", "ran", "--endpoints-file", str(self._endpoints_file)]
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [hosting_python(), "-m", "serveprune", "torchserve", "run", *ports, *places, *options],
                cwd=folder,
                env={**_environment(folder), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "http" in self.__dict__:
            self.http.close()
        if self.process.poll() is None:
            self.stop()

    @property
    def log(self) -> str:
        return self._log_file.read_text(encoding="utf-8")

    def wait_ready(self) -> Self:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}{self._logs()}"
            return self._endpoints_file.exists()

        wait_until(is_ready, what="the workers are ready", seconds=START_SECONDS)
        return self

    @cached_property
    def endpoints(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._endpoints_file.read_text(encoding="utf-8"))
        return found

    @cached_property
    def keys(self) -> dict[str, str]:
        """The tokens by what they are for."""
        document = json.loads(Path(self.endpoints["key_file"]).read_text(encoding="utf-8"))
        return {name: entry["key"] for name, entry in document.items()}

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(timeout=PATIENCE_SECONDS, trust_env=False)

    def ask(self, model: str, *, tier: str | None = None, token: str | None = None, **request: Any) -> httpx.Response:
        """Send one inference; `token` stands for the one that counts."""
        headers = {"Authorization": f"Bearer {token or self.keys['inference']}"} if "key_file" in self.endpoints else {}
        path = "" if tier is None else f"/1/tier/{tier}"
        return self.http.post(
            f"http://{self.endpoints['inference']}/predictions/{model}{path}", headers=headers, **request
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it did not stop when asked:\n{self.log}{self._logs()}") from None

    def processes(self) -> list[int]:
        """Return all its processes that run."""
        return marked_processes(self.folder)

    def _logs(self) -> str:
        return "".join(file.read_text(errors="replace")[-8000:] for file in self.folder.glob("ran/logs/*.log"))


def _environment(folder: Path) -> dict[str, str]:
    inherited = os.environ.get("PYTHONPATH")
    return {**marked_environment(folder), "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [inherited])])}
