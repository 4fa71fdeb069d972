"""Print what tiers gain inside TorchServe: against dense there, and against serveprune's own server.

    python tests/benchmarks/torchserve_tiers.py [--folder serveprune-demo] [--models fashion,minilm]
        [--connections 1,16] [--seconds 5] [--rounds 5]

Run it with the Python of `.venv-torchserve` (`make .venv-torchserve/installed`), or any other that has serveprune with
its extra `torchserve` and the demo's sentence encoder. Needed besides: `wrk` (the Debian package of that name) and
Java 17 (openjdk-17-jre-headless).

Builds what the folder's store lacks; then both servers serve the same artifacts of it, with the same config but for
the executors. Both compute on two cores, which the load generator shares: TorchServe with two workers of one executor
each, serveprune with one process of two executors; an executor has one thread. TorchServe hands over batches as
`serveprune torchserve package` sets it by default: of at most the model's `max_batch_size`, after a delay of 1 ms.

Clients send both the same bodies of one row: PNGs to fashion, JSON with 128 token ids to minilm. Tiers are asked for
by the header `x-compression-tier`. Both servers of a model run all the time and are loaded in turns, after five
seconds of load that are not measured, and the other way round in every second round. A load counts only if nothing
failed and if all probes before and after it were answered by the tier that was asked for; what does not count is told
on standard error. At the beginning of each round both servers' answers to the same body must be the same numbers.

The table shows medians of the rounds; ratios are medians of those taken within a round.
"""

import argparse
import http.client
import io
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnxruntime
import yaml
from load_generator import Load, http_load
from PIL import Image
from serving_peers.server_process import running
from timed_tiers import THREADS, machine

from serveprune.artifacts.builder import BuildOutcome, BuildRequest
from serveprune.cli.demo import lay_out
from serveprune.compression.child import SubprocessBuilder
from serveprune.config.loading import load_config
from serveprune.config.model import DENSE
from serveprune.oip.tensor import Array

_CHECKOUT = Path(__file__).parents[2]
_ENVIRONMENT = {"PYTHONPATH": str(_CHECKOUT)}
_SERVEPRUNE = (sys.executable, "-m", "serveprune")
_CORES = 2
_TIERS: Mapping[str, Sequence[str]] = {
    "fashion": (DENSE, "int8", "lean-int8", "tiny-int8"),
    "minilm": (DENSE, "int8", "small-int8"),
}
_TORCHSERVE, _OWN = "TorchServe", "serveprune"
_TIER_HEADER = "x-compression-tier"
_DISTINCT = 16
"""Requests in rotation."""
_TOKENS = 128
_VOCABULARY = 30522
_PROBES = 8
"""Several, for each worker has tiers of its own."""
_WARM_UP_SECONDS = 5.0
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Requests:
    """Distinct bodies of one row each, and their type."""

    bodies: Sequence[bytes]
    content_type: str


@dataclass(frozen=True, slots=True)
class _Served:
    """A server that runs, and where it takes requests for the model."""

    name: str
    authority: str
    path: str


@dataclass(slots=True)
class _Cell:
    """All rounds of a tier at a number of connections: loads by server, ``None`` for one that does not count."""

    loads: dict[str, list[Load | None]] = field(default_factory=lambda: {_TORCHSERVE: [], _OWN: []})


def main() -> None:
    """Build, serve, load, print."""
    arguments = _arguments()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed")
    # So that servers that are running are stopped then, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Servers and load generators inherit it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    models = arguments.models.split(",")
    if unknown := set(models) - set(_TIERS):
        raise SystemExit(f"--models: expected some of {', '.join(_TIERS)}, got {', '.join(sorted(unknown))}")
    connections = [int(count) for count in arguments.connections.split(",")]
    config_file = lay_out(arguments.folder.absolute())
    for model in models:
        _build(config_file, model)
    print(f"{machine()}; Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}; {_CORES} cores")
    print(f"medians of {arguments.rounds} rounds of {arguments.seconds:g} s\n")
    print(
        "| model | tier | connections | TorchServe requests/s | p50 ms | p99 ms | against dense in TorchServe "
        "| serveprune requests/s | p50 ms | p99 ms | against dense in serveprune | TorchServe against serveprune |"
    )
    print("|---" * 12 + "|", flush=True)
    for model in models:
        for row in _rows(config_file, model, connections, seconds=arguments.seconds, rounds=arguments.rounds):
            print("| " + " | ".join(row) + " |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("serveprune-demo"), help="The demo's; made if need be.")
    parser.add_argument("--models", default=",".join(_TIERS))
    parser.add_argument("--connections", default="1,16")
    parser.add_argument("--seconds", type=float, default=5.0, help="Length of a measurement.")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _build(config_file: Path, name: str) -> None:
    config = load_config(config_file)
    model = config.model(name)
    builder = SubprocessBuilder(config.store, config.builds, threads_of_serving=THREADS)
    for tier in _TIERS[name]:
        request = BuildRequest(model_name=name, model=model, tier=tier, profile=config.profile(tier))
        result = builder.build(request, on_progress=lambda progress: None, cancelled=Event())
        if result.outcome is BuildOutcome.FAILED or result.key is None:
            raise SystemExit(f"{name} {tier}: {'; '.join(result.reasons)}")


def _rows(
    config_file: Path, model: str, connections: Sequence[int], *, seconds: float, rounds: int
) -> Iterator[tuple[str, ...]]:
    requests = _requests(model, config_file.parent)
    cells = {(tier, count): _Cell() for count in connections for tier in _TIERS[model]}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(_torchserve(config_file, model)),
            stack.enter_context(_own(config_file, model)),
        ]
        for server in servers:
            _await_tiers(server, model, requests)
            # Java compiles what it does often, and is slow before.
            _counted(server, DENSE, requests, connections=max(connections), seconds=_WARM_UP_SECONDS)
        for number in range(rounds):
            for tier in _TIERS[model]:
                _check_same(servers, tier, requests)
            for (tier, count), cell in cells.items():
                for server in servers:
                    load = _counted(server, tier, requests, connections=count, seconds=seconds)
                    cell.loads[server.name].append(load)
            # The other way round next time, so that nobody always follows the same server.
            servers.reverse()
            print(f"{model}, round {number + 1} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    for tier in _TIERS[model]:
        for count in connections:
            loads, dense = cells[tier, count].loads, cells[DENSE, count].loads
            yield (
                model,
                tier,
                str(count),
                *_measures(loads[_TORCHSERVE]),
                _ratio(loads[_TORCHSERVE], dense[_TORCHSERVE]),
                *_measures(loads[_OWN]),
                _ratio(loads[_OWN], dense[_OWN]),
                _ratio(loads[_TORCHSERVE], loads[_OWN]),
            )


def _requests(model: str, folder: Path) -> _Requests:
    random = np.random.default_rng(0)
    if model == "fashion":
        with np.load(folder / "fashion_evaluation.npz") as dataset:
            images = dataset["image"][:_DISTINCT, 0]
        return _Requests([_png(image) for image in images], "image/png")
    bodies = []
    for _ in range(_DISTINCT):
        tokens = random.integers(1000, _VOCABULARY, _TOKENS).tolist()
        named = {"input_ids": tokens, "attention_mask": [1] * _TOKENS, "token_type_ids": [0] * _TOKENS}
        inputs = [
            {"name": name, "shape": [1, _TOKENS], "datatype": "INT64", "data": data} for name, data in named.items()
        ]
        bodies.append(json.dumps({"inputs": inputs}).encode())
    return _Requests(bodies, "application/json")


def _png(image: Array) -> bytes:
    """Write an image of the demo's set; what it was normalised by does not matter here."""
    scaled = (image - image.min()) / max(float(np.ptp(image)), 1e-6) * 255
    file = io.BytesIO()
    Image.fromarray(scaled.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def _torchserve(config_file: Path, model: str) -> Iterator[_Served]:
    """Package the model, and run a TorchServe with it while the context lasts."""
    with tempfile.TemporaryDirectory(prefix="torchserve-") as name, _config(config_file, model, executors=1) as config:
        folder = Path(name)
        store, announced = folder / "store", folder / "endpoints.json"
        package: list[str | Path] = [*_SERVEPRUNE, "torchserve", "package", "--config", config, "--model", model]
        package += ["--out", store, "--workers", str(_CORES)]
        subprocess.run(package, env={**os.environ, **_ENVIRONMENT}, check=True, stdout=sys.stderr)
        command: list[str | Path] = [*_SERVEPRUNE, "torchserve", "run", "--model-store", store, "--no-token-auth"]
        for front in ("inference", "management", "metrics", "grpc", "grpc-management"):
            command += [f"--{front}", "127.0.0.1:0"]
        command += ["--folder", folder / "run", "--endpoints-file", announced]
        with running(command, folder=folder, environment=_ENVIRONMENT, ready=announced.exists):
            yield _Served(_TORCHSERVE, json.loads(announced.read_text())["inference"], f"/predictions/{model}")


@contextmanager
def _own(config_file: Path, model: str) -> Iterator[_Served]:
    """Run serveprune's own server with the model while the context lasts."""
    with (
        tempfile.TemporaryDirectory(prefix="serveprune-") as name,
        _config(config_file, model, executors=_CORES) as config,
    ):
        folder = Path(name)
        announced = folder / "endpoints.json"
        command: list[str | Path] = [*_SERVEPRUNE, "serve", config, "--endpoints-file", announced]
        with running(command, folder=folder, environment=_ENVIRONMENT, ready=announced.exists):
            yield _Served(_OWN, json.loads(announced.read_text())["http"], f"/v2/models/{model}/infer")


@contextmanager
def _config(config_file: Path, model: str, *, executors: int) -> Iterator[Path]:
    """Give a config with the one model and the tiers that are measured, beside the demo's, to which paths relate."""
    content: dict[str, Any] = yaml.safe_load(config_file.read_text())
    content["models"] = {model: content["models"][model] | {"tiers": list(_TIERS[model])}}
    content["deployments"] = {model: content["deployments"][model]}
    addresses = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0")
    content["server"] = {**addresses, "executors": executors, "threads_per_executor": THREADS}
    with tempfile.NamedTemporaryFile("w", dir=config_file.parent, prefix="benchmark-", suffix=".yaml") as file:
        yaml.safe_dump(content, file, sort_keys=False)
        file.flush()
        yield Path(file.name)


def _await_tiers(server: _Served, model: str, requests: _Requests) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for tier in _TIERS[model]:
        while problem := _problem(server, tier, requests):
            if time.monotonic() > deadline:
                raise SystemExit(problem)
            time.sleep(0.5)


def _check_same(servers: Sequence[_Served], tier: str, requests: _Requests) -> None:
    first, second = (_numbers(_answer(server, tier, requests, index=0)[2]) for server in servers)
    if first.shape != second.shape or not np.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise SystemExit(f"{tier}: {servers[0].name} answers {first[:8]}, {servers[1].name} answers {second[:8]}")


def _numbers(body: bytes) -> Array:
    """Return the first output, in the form of either server: by name, or of the Open Inference Protocol."""
    document = json.loads(body)
    found = document["outputs"][0]["data"] if "outputs" in document else next(iter(document.values()))
    return np.asarray(found, dtype=np.float32).ravel()


def _counted(server: _Served, tier: str, requests: _Requests, *, connections: int, seconds: float) -> Load | None:
    """Load a server with requests for a tier; return ``None`` if that does not count."""
    problem = _problem(server, tier, requests)
    load = http_load(
        f"http://{server.authority}{server.path}",
        requests.bodies,
        headers=_headers(tier, requests),
        connections=connections,
        seconds=seconds,
    )
    problem = problem or _problem(server, tier, requests)
    if load.errors:
        problem = f"{load.errors} of {load.answers} requests failed"
    if problem:
        print(f"{server.name}, {tier}, {connections} connections, not counted: {problem}", file=sys.stderr, flush=True)
        return None
    return load


def _problem(server: _Served, tier: str, requests: _Requests) -> str:
    """Say which answer does not name the tier that it was asked for; nothing if all do."""
    for index in range(_PROBES):
        status, served, body = _answer(server, tier, requests, index=index)
        if status != 200 or served != tier:
            return f"{server.name}: {tier} was asked for, answered with {status} by {served}: {body[:200]!r}"
    return ""


def _answer(server: _Served, tier: str, requests: _Requests, *, index: int) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(server.authority, timeout=_PATIENCE_SECONDS)
    try:
        body = requests.bodies[index % len(requests.bodies)]
        connection.request("POST", server.path, body, _headers(tier, requests))
        answer = connection.getresponse()
        return answer.status, answer.getheader(_TIER_HEADER), answer.read()
    finally:
        connection.close()


def _headers(tier: str, requests: _Requests) -> dict[str, str]:
    return {"Content-Type": requests.content_type, _TIER_HEADER: tier}


def _measures(loads: Sequence[Load | None]) -> tuple[str, str, str]:
    counted = [load for load in loads if load is not None]
    if not counted:
        return "-", "-", "-"
    rate = statistics.median(load.requests_per_second for load in counted)
    p50 = statistics.median(load.p50_ms for load in counted)
    p99 = statistics.median(load.p99_ms for load in counted)
    return f"{rate:,.1f}", f"{p50:.2f}", f"{p99:.2f}"


def _ratio(loads: Sequence[Load | None], others: Sequence[Load | None]) -> str:
    ratios = [
        one.requests_per_second / other.requests_per_second
        for one, other in zip(loads, others, strict=True)
        if one is not None and other is not None
    ]
    return f"{statistics.median(ratios):.2f}x" if ratios else "-"


if __name__ == "__main__":
    main()
