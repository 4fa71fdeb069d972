"""The child process that makes one artifact: ``python -m serveprune.compression.worker [JOB.json]``.

Reads a `BuildJob` as JSON from the file or from standard input. Writes `ProgressLine`s and at last a
`ResultLine` to standard output; whatever libraries print goes to standard error.

Imports are inside functions: numpy and torch read the limits on threads once, when they load.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from serveprune.artifacts.builder import BuildProgress, BuildResult
    from serveprune.compression.job import BuildJob, ResultLine

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "800"  # of 1000: when memory runs out, the kernel ends builds before the server
_PARENT_POLL_SECONDS = 1.0
_CLEANUP_SECONDS = 5.0


def main() -> int:
    """Run one build and return the exit status, 0 whenever a result line was written."""
    return run_worker(_build)


def run_worker(work: "Callable[[BuildJob, Callable[[BuildProgress], None]], BuildResult]") -> int:
    """Do one job inside the limits it names and return the exit status.

    Args:
        work: Does the job; called once the limits hold, so that what it imports reads them.
    """
    events = _take_over_output()
    text = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else sys.stdin.buffer.read()
    settings = json.loads(text)
    _follow_parent(settings["parent_pid"])
    _lower_priority(settings["builds"]["niceness"])
    _limit_threads(settings["builds"]["threads"])

    from serveprune.compression.job import BuildJob, ProgressLine

    def report(progress: "BuildProgress") -> None:
        line = ProgressLine(stage=progress.stage, fraction=progress.fraction, message=progress.message)
        print(line.model_dump_json(), file=events, flush=True)

    result = _run(work, BuildJob.model_validate_json(text), report)
    print(result.model_dump_json(), file=events, flush=True)
    return 0


def _build(job: "BuildJob", report: "Callable[[BuildProgress], None]") -> "BuildResult":
    from serveprune.artifacts.opening import open_store
    from serveprune.compression.build import build

    store = open_store(job.store)
    threads, serving = job.builds.threads, job.threads_of_serving
    return build(job.request, store=store, threads=threads, threads_of_serving=serving, on_progress=report)


def _run(
    work: "Callable[[BuildJob, Callable[[BuildProgress], None]], BuildResult]",
    job: "BuildJob",
    report: "Callable[[BuildProgress], None]",
) -> "ResultLine":
    from serveprune.compression.job import ResultLine, failed_line

    started = time.monotonic()
    try:
        result = work(job, report)
    except Exception as error:  # whatever a library raises is a failed build; the log has all of it
        traceback.print_exc()
        reason, bad_input = _explanation(error)
        return failed_line(reason, bad_input=bad_input, seconds=time.monotonic() - started)
    return ResultLine.of(result)


def _explanation(error: Exception) -> tuple[str, bool]:
    """Return what to tell people about an error, and whether the input is to blame for it."""
    from serveprune.errors import ServePruneError

    if isinstance(error, ServePruneError):
        return error.message, error.is_bad_input
    if isinstance(error, ModuleNotFoundError):
        return f'{error}: pip install "serveprune[compress]"', True
    if isinstance(error, MemoryError):
        return "out of memory", False
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}", False


def _take_over_output() -> IO[str]:
    """Keep standard output for events alone, and send what libraries print to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _follow_parent(parent: int) -> None:
    """End, cleaning up, when the parent asks for it or dies."""
    signal.signal(signal.SIGTERM, _leave)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        # The kernel's signal misses a parent that died before prctl, and waits while native code runs.
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_CLEANUP_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _leave(number: int, _frame: FrameType | None) -> None:
    # As an exception, so that `with store.staging()` removes what is half done.
    raise SystemExit(128 + number)


def _lower_priority(niceness: int) -> None:
    os.nice(niceness)
    try:
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    except OSError as error:
        print(f"the kernel would not raise this build's oom score: {error}", file=sys.stderr)


def _limit_threads(threads: int) -> None:
    os.environ |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


if __name__ == "__main__":
    sys.exit(main())
