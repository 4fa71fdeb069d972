"""Closed-loop load by programs written in C, so that the generator takes little of the cores it shares.

`wrk` for HTTP/1.1, with several distinct bodies in rotation. `h2load` for gRPC: each connection has one call in flight;
a call is an HTTP/2 POST of one prepared message. h2load sees neither gRPC's status, which is in the trailers, nor the
message, so a call counts as answered only if as many bytes of data came as a good answer has; a refusal has none.

Requests per second are counted within a window that begins after a warm-up. Latencies: of wrk, its own percentiles,
which it corrects where an answer took more than twice the average (a client that waits sends less); of h2load, of the
calls within the window, as they were.
"""

import json
import math
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WARM_UP_SECONDS = 1.0
_ROTATION = Path(__file__).parent / "wrk_rotation.lua"
_PATIENCE_SECONDS = 120
_PROGRAMS = {"wrk": "wrk", "h2load": "nghttp2-client"}
_GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")


@dataclass(frozen=True, slots=True)
class Load:
    """What clients saw.

    Attributes:
        requests_per_second: Good answers.
        p50_ms: Median time from request to answer.
        p99_ms: The 99th percentile of it.
        errors: Answers other than good ones, and connections that broke.
        answers: Of any kind, in all of the time, warm-up included.
    """

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    answers: int


def require_programs() -> None:
    """Leave with the way to get what is missing."""
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"load generators are missing: apt-get install {' '.join(missing)}")


def http_load(
    url: str, bodies: Sequence[bytes], *, headers: Mapping[str, str], connections: int, seconds: float
) -> Load:
    """Send bodies in rotation over so many connections."""
    with tempfile.TemporaryDirectory() as folder:
        for index, body in enumerate(bodies):
            (Path(folder) / str(index)).write_bytes(body)
        length = math.ceil(WARM_UP_SECONDS + seconds + 0.1)
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{length}s"]
        # Where 32 clients wait for one slow model, two seconds (the default) are no error.
        command += ["--timeout", f"{_PATIENCE_SECONDS}s", "--script", str(_ROTATION), url, "--"]
        command += [folder, str(len(bodies)), str(WARM_UP_SECONDS), str(seconds)]
        command += [part for header in headers.items() for part in header]
        printed = _output_of(command)
    lines = [line for line in printed.splitlines() if line.startswith("rotation ")]
    if not lines:
        raise SystemExit(f"wrk said:\n{printed}")
    found = json.loads(lines[0].removeprefix("rotation "))
    good_ratio = 1 - found["refused"] / max(found["requests"], 1)
    return Load(
        found["answers"] / seconds * good_ratio,
        found["p50_us"] / 1000,
        found["p99_us"] / 1000,
        found["refused"] + found["broken"],
        found["requests"],
    )


def grpc_load(
    authority: str, path: str, message: bytes, *, answer_bytes: int, connections: int, seconds: float
) -> Load:
    """Call a unary method over so many connections, one call at a time on each.

    Args:
        authority: ``host:port``.
        path: Of the method, ``/package.Service/Method``.
        message: The serialized request.
        answer_bytes: Least size of a good answer's message.
        connections: Clients.
        seconds: Of the window.
    """
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name) / "body", Path(name) / "log"
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        command = ["h2load", "--clients", str(connections), "--max-concurrent-streams", "1", "--threads", "1"]
        # Its own warm-up would not show in the log; a second of it lies within the duration instead.
        length = f"{round((WARM_UP_SECONDS + seconds) * 1000)}ms"
        command += ["--duration", length, "--data", str(body), "--log-file", str(log)]
        command += [part for header in _GRPC_HEADERS for part in ("--header", header)]
        printed = _output_of([*command, f"http://{authority}{path}"])
        calls = [tuple(map(int, line.split("\t")[:3])) for line in log.read_text().splitlines()]
    data_bytes = _data_bytes(printed)
    if data_bytes is None:
        raise SystemExit(f"h2load said:\n{printed}")
    good = [(start + taken, taken) for start, status, taken in calls if status == 200]
    begins = min((start for start, _, _ in calls), default=0) + WARM_UP_SECONDS * 1e6
    within = [taken / 1000 for ended, taken in good if begins <= ended < begins + seconds * 1e6]
    # An answer that failed within gRPC came without data.
    refused = len(good) - min(len(good), data_bytes // (answer_bytes + 5))
    # A server that stalls for the whole window has no latencies, which a table must be able to say.
    p50, p99 = (_percentile(within, percent) for percent in (50, 99))
    return Load(
        len(within) / seconds * (1 - refused / max(len(good), 1)),
        p50,
        p99,
        len(calls) - len(good) + refused,
        len(calls),
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else math.inf
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _data_bytes(printed: str) -> int | None:
    """Return how many bytes of messages came, from ``traffic: 1.2MB (123) total, ... 0.9MB (99) data``."""
    for line in printed.splitlines():
        if line.startswith("traffic:"):
            return int(line.rpartition("(")[2].partition(")")[0])
    return None


def _output_of(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
