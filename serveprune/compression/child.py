"""Builds in a child process, so that nothing a build does can take the server down.

Imports no torch and no onnx: this runs in the serving process.
"""

import contextlib
import importlib.util
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any

import psutil

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.store import ArtifactStore
from serveprune.compression.job import BuildJob, ResultLine, failed_line, parse_line
from serveprune.config.server import BuildsConfig, StoreConfig
from serveprune.errors import ResourceExhausted

_WORKER = "serveprune.compression.worker"
_REQUIRED_PACKAGES = ("onnx", "onnx_ir")
_LOG = "build.log"
_POLL_SECONDS = 0.1
_MEMORY_POLL_SECONDS = 0.25
_TERMINATION_SECONDS = 5.0


class SubprocessBuilder:
    """An `ArtifactBuilder` that runs each build in a process of its own, with bounded threads and memory.

    Thread-safe; every call of `build` has its own child.
    """

    def __init__(
        self,
        store_config: StoreConfig,
        builds: BuildsConfig,
        *,
        threads_of_serving: int = 1,
        worker: str = _WORKER,
        log_suffix: str = "",
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Remember where artifacts go and what a build may take.

        Args:
            store_config: The store the children write to.
            builds: Limits of one build.
            threads_of_serving: Threads one batch gets in serving; latency is measured with as many.
            worker: Module that the child runs.
            log_suffix: Sets the logs of what fails apart from those of builds.
            settings: What that module is asked beyond the request; ready for JSON.
        """
        self._store_config = store_config
        self._builds = builds
        self._threads_of_serving = threads_of_serving
        self._worker = worker
        self._log_suffix = log_suffix
        self._settings = dict(settings)

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        """See `ArtifactBuilder.build`."""
        started = time.monotonic()
        missing = [name for name in _REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            reason = f'building needs {", ".join(missing)}: pip install "serveprune[compress]"'
            return BuildResult(BuildOutcome.FAILED, reasons=(reason,), bad_input=True)
        try:
            # There the next process that stores something removes it, should this one be killed.
            with self._store().staging() as folder:
                line = self._run(request, folder=folder, on_progress=on_progress, cancelled=cancelled)
                failed = line.outcome is BuildOutcome.FAILED
                kept = self._keep_log(request, folder / _LOG) if failed else None
        except (OSError, ResourceExhausted) as error:
            line, kept = failed_line(f"the build process could not be run: {error}"), None
        seconds = line.seconds or time.monotonic() - started
        return line.model_copy(update={"seconds": seconds}).result(log=kept)

    def _run(
        self,
        request: BuildRequest,
        *,
        folder: Path,
        on_progress: Callable[[BuildProgress], None],
        cancelled: Event,
    ) -> ResultLine:
        """Run the child to its end; ``folder`` holds its log and its temporary files."""
        job = BuildJob(
            request=request,
            store=self._store_config,
            builds=self._builds,
            threads_of_serving=self._threads_of_serving,
            parent_pid=os.getpid(),
            settings=self._settings,
        )
        with (folder / _LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self._worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # What libraries put into temporary files goes away with the folder, even if the child is killed.
                env=os.environ | {"TMPDIR": str(folder)},
                # Ctrl-C in a terminal goes to the group; the parent decides what it means for the build.
                start_new_session=True,
            )
        watch = _Watch(process, builds=self._builds, cancelled=cancelled)
        try:
            _send(process, job)
            result = watch.follow(on_progress)
        except BaseException:
            watch.stopped = failed_line("interrupted")
            raise
        finally:
            status = watch.end()
        return result or watch.stopped or failed_line(_death(status, folder / _LOG))

    def _store(self) -> ArtifactStore:
        return open_store(self._store_config)

    def _keep_log(self, request: BuildRequest, log: Path) -> Path | None:
        try:
            kept = self._store().failure_log(f"{request.model_name}@{request.tier}{self._log_suffix}")
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, kept)
        except OSError:
            # The disk that failed the build cannot hold its log either; the reason still gets out.
            return None
        return kept


class _Watch:
    """Follows one child: reads its lines, and ends it at a limit or when the build is cancelled."""

    def __init__(self, process: "subprocess.Popen[bytes]", *, builds: BuildsConfig, cancelled: Event) -> None:
        self._process = process
        self._builds = builds
        self._cancelled = cancelled
        self._deadline = time.monotonic() + builds.timeout_seconds
        self._next_memory_check = 0.0
        self.stopped: ResultLine | None = None

    def follow(self, on_progress: Callable[[BuildProgress], None]) -> ResultLine | None:
        """Pass progress on until the child closes its output; return its result if it sent one."""
        stream = self._process.stdout
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
        pending, result = b"", None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while result is None and self.stopped is None:
                if selector.select(_POLL_SECONDS):
                    chunk = os.read(stream.fileno(), 65536)
                    if not chunk:
                        break
                    *lines, pending = (pending + chunk).split(b"\n")
                    result = self._take(lines, on_progress)
                self._check_limits()
        return result

    def _take(self, lines: list[bytes], on_progress: Callable[[BuildProgress], None]) -> ResultLine | None:
        for text in lines:
            try:
                line = parse_line(text)
            except ValueError:
                shown = text[:100].decode(errors="replace")
                self.stopped = failed_line(f"the build process sent something that is no build event: {shown!r}")
                return None
            if isinstance(line, ResultLine):
                return line
            on_progress(line.progress)
        return None

    def _check_limits(self) -> None:
        now = time.monotonic()
        if self._cancelled.is_set():
            self.stopped = failed_line("cancelled")
        elif now > self._deadline:
            allowed = self._builds.timeout_seconds
            self.stopped = failed_line(f"killed: it took longer than builds.timeout_seconds ({allowed:g})")
        elif now >= self._next_memory_check:
            self._next_memory_check = now + _MEMORY_POLL_SECONDS
            self._check_memory()

    def _check_memory(self) -> None:
        used, limit = _resident_bytes(self._process.pid), int(self._builds.max_memory_bytes)
        if used > limit:
            # It may be growing fast, so it is not asked to clean up; the store removes what it leaves.
            os.kill(self._process.pid, signal.SIGKILL)
            self.stopped = failed_line(
                f"killed: it used {used / 2**20:.0f} MiB of {limit / 2**20:.0f} MiB allowed by builds.max_memory_bytes"
            )

    def end(self) -> int:
        """Leave no process behind and return the exit status, negative for a signal.

        The child is asked to clean up, then killed with all it started. Until it is reaped its process id,
        and with it the id of its session, cannot pass to a stranger.
        """
        pid = self._process.pid
        if self.stopped is not None:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _TERMINATION_SECONDS
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 10)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return self._process.wait()


def _send(process: "subprocess.Popen[bytes]", job: BuildJob) -> None:
    assert process.stdin is not None
    # A child that died at once has a better story in its exit status and log.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.model_dump_json().encode())
        process.stdin.close()


def _resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and all its descendants."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += member.memory_info().rss
    return total


def _death(status: int, log: Path) -> str:
    """Say how a child without a result ended."""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = " (by hand, or by the kernel because memory ran out)" if -status == signal.SIGKILL else ""
        return f"the build process was killed by {name}{hint}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the build process ended with status {status}: {lines[-1] if lines else 'it left no message'}"
