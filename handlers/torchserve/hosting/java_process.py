"""TorchServe's Java process and what descends from it, from start to stop."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Event

import psutil

from serveprune.errors import FailedPrecondition
from serveprune.handlers.torchserve.hosting.settings_files import (
    CONSOLE_LOG,
    LOG_SETTINGS,
    RunSettings,
    properties,
    worker_variables,
)
from serveprune.handlers.torchserve.installation import java, require_package

KEY_FILE = "key_file.json"
_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 60.0
_LEFT_BEHIND_SECONDS = 10.0
_POLL_SECONDS = 0.05
_SOCKET_NAME = ".ts.sock.65535"
_LONGEST_SOCKET_PATH = 107
# These would point TorchServe elsewhere than its files here do.
_NOT_PASSED_ON = ("TS_CONFIG_FILE", "LOG_LOCATION", "METRICS_LOCATION", "TS_MODEL_SERVER_HOME")


class JavaProcess:
    """A running TorchServe, with temporary files of its own. Not thread-safe."""

    def __init__(self, settings: RunSettings, *, folder: Path) -> None:
        """Start it.

        It is started without TorchServe's own script, which a signal would end without ending this.

        Args:
            settings: How it runs.
            folder: Exists; holds its settings, its logs, and the file with its tokens.

        Raises:
            FailedPrecondition: There is no Java, or temporary files would have too long a name.
            MissingExtra: TorchServe is not installed.
        """
        command = _command(settings, folder=folder)
        (folder / CONSOLE_LOG).parent.mkdir(parents=True, exist_ok=True)
        (folder / KEY_FILE).unlink(missing_ok=True)
        (folder / "config.properties").write_text(properties(settings), encoding="ascii")
        (folder / "log4j2.xml").write_text(LOG_SETTINGS, encoding="utf-8")
        # Sockets to workers and unpacked archives lie there; a socket's path may not be long.
        self._temporary = tempfile.TemporaryDirectory(prefix="serveprune-ts-", ignore_cleanup_errors=True)
        try:
            temporary = _short(self._temporary.name)
            environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
            with (folder / CONSOLE_LOG).open("wb") as log:
                self._process = subprocess.Popen(
                    [command[0], f"-Djava.io.tmpdir={temporary}", *command[1:]],
                    # The file with the tokens is written where it runs.
                    cwd=folder,
                    env=environment | {"TEMP": temporary, "TMPDIR": temporary} | worker_variables(settings),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in a terminal goes to the group; `stop` ends what is in it.
                    start_new_session=True,
                    preexec_fn=_end_with(os.getpid()),
                )
        except BaseException:
            self._temporary.cleanup()
            raise

    @property
    def pid(self) -> int:
        """Of the Java process."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return what it ended with; ``None`` while it runs."""
        return self._process.poll()

    def wait(self, interrupted: Event, *, poll_seconds: float = 0.2) -> int | None:
        """Wait until it ends, or until the event is set; return the exit code, or ``None``."""
        while self.exit_code() is None and not interrupted.wait(poll_seconds):
            pass
        return self.exit_code()

    def stop(self) -> None:
        """End it and all that descends from it, and remove its temporary files. A second time does nothing."""
        descendants = self._descendants()
        if self.exit_code() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        # Workers that were just being started are not TorchServe's to end any more; builds end after their worker.
        left = _remaining({*descendants, *_of_session(self.pid)})
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _remaining(left)
        self._temporary.cleanup()

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def _command(settings: RunSettings, *, folder: Path) -> list[str]:
    home = require_package("torchserve")
    return [
        java(),
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={(folder / 'log4j2.xml').absolute().as_uri()}",
        *("-cp", str(home / "ts" / "frontend" / "*"), "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable),
        *("-f", str((folder / "config.properties").absolute())),
        *("-s", str(settings.model_store.absolute())),
        "-ncs",
        *(() if settings.token_auth else ("--disable-token-auth",)),
        *(("--enable-model-api",) if settings.model_api else ()),
        *("-m", *(f"{name}={name}.mar" for name in settings.models)),
    ]


def _short(folder: str) -> str:
    if len(os.fsencode(Path(folder, _SOCKET_NAME))) > _LONGEST_SOCKET_PATH:
        raise FailedPrecondition(
            f"TMPDIR: expected a short path, for sockets may have {_LONGEST_SOCKET_PATH} bytes, got {folder}"
        )
    return folder


def _end_with(parent_pid: int) -> Callable[[], None]:
    library = ctypes.CDLL(None)

    def arrange() -> None:
        # A signal that TorchServe handles, so that its workers end too.
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:
            os._exit(1)

    return arrange


def _remaining(processes: Collection[psutil.Process]) -> list[psutil.Process]:
    """Wait for processes to end; return those that do not. What only waits to be reaped has ended."""
    deadline = time.monotonic() + _LEFT_BEHIND_SECONDS
    left = [process for process in processes if _runs(process)]
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        left = [process for process in left if _runs(process)]
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _of_session(session: int) -> list[psutil.Process]:
    """Return the processes of a session, whoever is their parent by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return found
