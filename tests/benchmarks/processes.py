"""Print what several serving processes gain on small requests, and what they cost in memory.

    python tests/benchmarks/processes.py [--processes 1 2] [--rounds 5] [--seconds 3] [--minilm SOURCE_FOLDER]

Needs `wrk` (the Debian package of that name), which runs on the same cores. The servers are loaded in turns, so that
what else the machine does falls on all of them; figures are medians over the rounds. Memory is the PSS of the serving
processes with MiniLM's dense graph: pages that several of them map count once. It is taken twice: with weights that
all map from one file, and with a copy in each process.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from hot_path import benchmark_graph

CONNECTIONS = (1, 8, 32)
TEXT = b"a gripping, funny and beautifully acted film"
PATIENCE_SECONDS = 300.0


def main() -> None:
    """Serve, load, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--minilm", type=Path, help="its Hugging Face folder; without it memory is left out")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed")
    with tempfile.TemporaryDirectory() as folder:
        _print_throughput(Path(folder), arguments)
        if arguments.minilm is not None:
            _print_memory(Path(folder), arguments.minilm)


def _print_throughput(folder: Path, arguments: argparse.Namespace) -> None:
    graph = benchmark_graph("mlp", folder)
    numbers = ", ".join(f"{number / 64:.3f}" for number in range(64))
    body = f'{{"inputs":[{{"name":"x","shape":[1,64],"datatype":"FP32","data":[{numbers}]}}]}}'
    script = folder / "post.lua"
    script.write_text(f"wrk.method = 'POST'\nwrk.body = '{body}'\n")
    print(f"MLP, JSON over HTTP, {os.cpu_count()} cores, medians of {arguments.rounds} rounds\n")
    print("| connections | processes | requests/s | against 1 process | p99 ms | requests per CPU second |")
    print("|---" * 6 + "|")
    with ExitStack() as running:
        servers = {
            count: running.enter_context(_server(folder, count, {"onnx": str(graph.file)}))
            for count in arguments.processes
        }
        for connections in CONNECTIONS:
            rounds: dict[int, list[tuple[float, float, float]]] = {count: [] for count in servers}
            for _ in range(arguments.rounds):
                for count, endpoints in servers.items():
                    rounds[count].append(_load(endpoints, script, connections, arguments.seconds))
            for count, loads in rounds.items():
                first = rounds[arguments.processes[0]]
                ratio = statistics.median(one[0] / other[0] for one, other in zip(loads, first, strict=True))
                rate, p99, per_cpu = (statistics.median(column) for column in zip(*loads, strict=True))
                print(
                    f"| {connections} | {count} | {rate:,.0f} | {ratio:.2f} | {p99:.1f} | {per_cpu:,.0f} |", flush=True
                )


def _print_memory(folder: Path, source: Path) -> None:
    minilm = {"huggingface": str(source), "task": "feature-extraction", "pooling": "mean", "normalize": True}
    print("\n| processes | PSS MiB, weights mapped | PSS MiB, a copy in each |")
    print("|---" * 3 + "|")
    for count in (2, 4):
        mapped = _memory(folder, count, minilm)
        forms = [
            form for form in (folder / "store" / "artifacts").glob("*/mapped-*") if (form / "weights.bin").exists()
        ]
        for form in forms:
            (form / "attachment.json").rename(form / "kept.json")
            (form / "attachment.json").write_text(json.dumps({"problem": "left out for comparison"}))
        copied = _memory(folder, count, minilm)
        for form in forms:
            (form / "kept.json").replace(form / "attachment.json")
        print(f"| {count} | {mapped:.0f} | {copied:.0f} |", flush=True)


def _memory(folder: Path, count: int, source: Mapping[str, Any]) -> float:
    with _server(folder, count, source) as endpoints:
        for _ in range(20 * count):
            headers = {"Content-Type": "text/plain"}
            url = f"http://{endpoints['http']}/v2/models/model/infer"
            urllib.request.urlopen(urllib.request.Request(url, data=TEXT, headers=headers)).read()
        serving = psutil.Process(int(endpoints["pid"])).children()
        return sum(process.memory_full_info().pss for process in serving) / 2**20


def _load(endpoints: Mapping[str, str], script: Path, connections: int, seconds: int) -> tuple[float, float, float]:
    """Return requests per second, the 99th percentile in milliseconds, and requests per CPU second of the server."""
    url = f"http://{endpoints['http']}/v2/models/model/infer"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    before = _metric(endpoints, "process_cpu_seconds_total")
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu_seconds = _metric(endpoints, "process_cpu_seconds_total") - before
    if "Non-2xx" in output:
        raise SystemExit(output)
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", output)[0])
    served = int(re.findall(r"(\d+) requests in", output)[0])
    value, unit = re.findall(r"99%\s+([\d.]+)(us|ms|s)", output)[0]
    return rate, float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit], served / cpu_seconds


@contextmanager
def _server(folder: Path, count: int, source: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    config, announced = folder / f"{count}.yaml", folder / f"{count}.json"
    cores = os.cpu_count() or 1
    front_ends = dict.fromkeys(("http", "grpc", "metrics"), "127.0.0.1:0")
    document = {
        "store": {"path": str(folder / "store")},
        "server": {**front_ends, "processes": count, "executors": max(count, cores)},
        "models": {"model": {"source": dict(source), "tiers": ["dense"]}},
    }
    config.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "serveprune", "serve", str(config), "--endpoints-file", str(announced)]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not announced.exists() or _metric(json.loads(announced.read_text()), "serveprune_tier_ready") < 1:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.1)
        yield {**json.loads(announced.read_text()), "pid": str(process.pid)}
    finally:
        process.terminate()
        process.wait()


def _metric(endpoints: Mapping[str, str], name: str) -> float:
    page = urllib.request.urlopen(f"http://{endpoints['metrics']}/metrics").read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


if __name__ == "__main__":
    main()
