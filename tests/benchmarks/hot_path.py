"""Load a real server with requests that cost next to nothing to compute, and print what is left of the machine.

    python tests/benchmarks/hot_path.py [--model mlp|fashion] [--connections 1 8 32] [--seconds 5]
        [--protocols json binary grpc] [--profile FOLDER --py-spy PATH] [--tracing off 0.01 1 --turns 4]

Needs `wrk` and `h2load` (Debian packages of these names). The load generator runs on the same cores as the server.
While it runs, one more client sends requests of its own and compares every answer with ONNX Runtime's; the server's
own counters must say that all answers were OK. Requests per CPU second of the server stay comparable where others use
the machine at the same time. With `--profile`, py-spy samples the server under each load and leaves
its raw stacks in the folder, from which `deploy/draw_hot_path.py` draws a picture.

With `--tracing` a server for each of these shares of sampled requests is loaded in turns, and exports its spans to a
process that reads and forgets them; then a table has medians over the turns, and the lowest and the highest of each.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import psutil
from onnx import TensorProto, helper, numpy_helper

from serveprune.frontends.grpc.pb import open_inference_pb2 as pb
from serveprune.oip.tensor import Array

MLP_WIDTHS = (64, 256, 256, 10)
FASHION = Path(__file__).resolve().parents[2] / "serveprune/demo/fashion.onnx"
MODELS = ("mlp", "fashion")
PROTOCOLS = ("json", "binary", "grpc")
INFER = "/v2/models/model/infer"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
PATIENCE_SECONDS = 60.0
OFF = "off"


@dataclass(frozen=True, slots=True)
class Graph:
    """What is served, and what it takes: one input, ``(N, ...)`` float32."""

    file: Path
    input: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the server listens, and its process."""

    http: str
    grpc: str
    metrics: str
    pid: int


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator saw."""

    requests_per_second: float
    p50_milliseconds: float
    p99_milliseconds: float
    per_cpu_second: float

    def cells(self) -> tuple[str, ...]:
        """Return the figures as a table shows them."""
        return (
            f"{self.requests_per_second:,.0f}",
            f"{self.p50_milliseconds:.2f}",
            f"{self.p99_milliseconds:.2f}",
            f"{self.per_cpu_second:,.0f}",
        )


def main() -> None:
    """Serve, load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="folder for py-spy's raw stacks, one file per load")
    parser.add_argument("--py-spy", default="py-spy", help="the program, if it is not on the path")
    parser.add_argument("--tracing", nargs="+", default=[OFF], help="shares of requests that are sampled, or off")
    parser.add_argument("--turns", type=int, default=1, help="how often each of them has its turn")
    arguments = parser.parse_args()
    for program in ("wrk", "h2load"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        graph = benchmark_graph(arguments.model, Path(folder))
        limit = _in_process_limit(graph, seconds=1.0)
        print(f"{arguments.model}: in process, {os.cpu_count()} threads, best batch: {limit:,.0f} rows/s\n")
        columns = ("requests/s", "of the limit", "p50 ms", "p99 ms", "requests per CPU second")
        _print_row(("tracing", "protocol", "connections", *columns))
        print("|---" * 8 + "|")
        loads: dict[tuple[str, str, int], list[Load]] = {}
        with _collector(is_wanted=arguments.tracing != [OFF]) as collector:
            for turn in range(arguments.turns):
                # Whoever comes first in one turn comes last in the next.
                for tracing in arguments.tracing[:: -1 if turn % 2 else 1]:
                    with _server(graph, Path(folder), tracing=tracing, collector=collector) as endpoints:
                        for protocol in arguments.protocols:
                            for connections in arguments.connections:
                                load = _measure(graph, endpoints, protocol, connections, arguments, Path(folder))
                                loads.setdefault((tracing, protocol, connections), []).append(load)
                                rate, *rest = load.cells()
                                share = f"{load.requests_per_second / limit:.2f}"
                                _print_row((tracing, protocol, str(connections), rate, share, *rest))
    if arguments.turns > 1:
        _print_medians(loads)


def _print_row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def _print_medians(loads: Mapping[tuple[str, str, int], Sequence[Load]]) -> None:
    print("\nmedian (lowest to highest)\n")
    _print_row(("tracing", "protocol", "connections", "turns", "requests/s", "requests per CPU second"))
    print("|---" * 6 + "|")
    for (tracing, protocol, connections), found in loads.items():
        spreads = [
            f"{median(figures):,.0f} ({min(figures):,.0f} to {max(figures):,.0f})"
            for figures in ([load.requests_per_second for load in found], [load.per_cpu_second for load in found])
        ]
        _print_row((tracing, protocol, str(connections), str(len(found)), *spreads))


@contextmanager
def _collector(*, is_wanted: bool) -> Iterator[str]:
    """Run what takes spans, in a process of its own, and give its address."""
    if not is_wanted:
        yield ""
        return
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_collect, args=(its,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _collect(told: Connection) -> None:
    class Forgetting(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the library's name
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forgetting)
    told.send(server.server_address[1])
    server.serve_forever()


def _measure(
    graph: Graph, endpoints: Endpoints, protocol: str, connections: int, arguments: argparse.Namespace, folder: Path
) -> Load:
    run = _run_h2load if protocol == "grpc" else _run_wrk
    run(graph, endpoints, protocol, connections, 1, folder)
    with _checked(graph, endpoints), _profiled(endpoints, protocol, connections, arguments):
        process = psutil.Process(endpoints.pid)
        before, started = process.cpu_times(), time.monotonic()
        rate, p50, p99 = run(graph, endpoints, protocol, connections, arguments.seconds, folder)
        after, ended = process.cpu_times(), time.monotonic()
    cpu_seconds = after.user + after.system - before.user - before.system
    return Load(rate, p50, p99, rate * (ended - started) / cpu_seconds)


def benchmark_graph(model: str, folder: Path) -> Graph:
    if model == "fashion":
        declared = onnx.load(FASHION).graph.input[0]
        return Graph(FASHION, declared.name, (1, 28, 28))
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer, (rows, columns) in enumerate(pairwise(MLP_WIDTHS)):
        last = layer == len(MLP_WIDTHS) - 2
        weight = random.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        bias = random.normal(0, 0.1, columns).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
        product = "y" if last else f"h{layer}"
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [product]))
        if not last:
            nodes.append(helper.make_node("Relu", [product], [f"r{layer}"]))
            value = f"r{layer}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", MLP_WIDTHS[0]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", MLP_WIDTHS[-1]])]
    built = helper.make_graph(nodes, "mlp", inputs, outputs, weights)
    file = folder / "mlp.onnx"
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return Graph(file, "x", (MLP_WIDTHS[0],))


def _session(graph: Graph) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(graph.file), options, providers=["CPUExecutionProvider"])


def _in_process_limit(graph: Graph, *, seconds: float) -> float:
    """Return the rows per second of as many sessions as there are cores, each in a thread, at the best batch."""
    best = 0.0
    for size in BATCH_SIZES:
        feeds = {graph.input: np.zeros((size, *graph.shape), np.float32)}
        rows = [0] * (os.cpu_count() or 1)
        until = time.monotonic() + seconds

        def spin(index: int, feeds: Mapping[str, Array] = feeds, rows: list[int] = rows, until: float = until) -> None:
            session = _session(graph)
            while time.monotonic() < until:
                session.run(None, feeds)
                rows[index] += len(feeds[graph.input])

        threads = [threading.Thread(target=spin, args=(index,)) for index in range(len(rows))]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(rows) / (time.monotonic() - started))
    return best


@contextmanager
def _server(graph: Graph, folder: Path, *, tracing: str, collector: str) -> Iterator[Endpoints]:
    announced = folder / "endpoints.json"
    announced.unlink(missing_ok=True)
    sampled = {} if tracing == OFF else {"tracing": {"endpoint": collector, "sample_ratio": float(tracing)}}
    config = {
        "store": {"path": str(folder / "store")},
        "server": {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "metrics": "127.0.0.1:0", **sampled},
        "models": {"model": {"source": {"onnx": str(graph.file)}, "tiers": ["dense"]}},
    }
    file = folder / "serveprune.yaml"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "serveprune", "serve", str(file), "--endpoints-file", str(announced)]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait(announced.exists, process, log)
        addresses = json.loads(announced.read_text())
        http = f"http://{addresses['http']}"
        _wait(lambda: _status(f"{http}/v2/health/ready") == 200, process, log)
        yield Endpoints(http, addresses["grpc"], f"http://{addresses['metrics']}/metrics", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not come up:\n{log.read_text()}")
        time.sleep(0.05)


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except OSError:
        return 0


def _body(graph: Graph, array: Array, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    entry: dict[str, Any] = {"name": graph.input, "datatype": "FP32", "shape": list(array.shape)}
    document: dict[str, Any]
    if not binary:
        document = {"inputs": [{**entry, "data": array.ravel().tolist()}]}
        return json.dumps(document).encode(), {"Content-Type": "application/json"}
    raw = array.tobytes()
    document = {
        "inputs": [{**entry, "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


def _example(graph: Graph, seed: int) -> Array:
    values = np.random.default_rng(seed).uniform(0, 1, (1, *graph.shape))
    # As a person would write them: six digits.
    return np.round(values, 6).astype(np.float32)


def _run_wrk(
    graph: Graph, endpoints: Endpoints, protocol: str, connections: int, seconds: int, folder: Path
) -> tuple[float, float, float]:
    body, headers = _body(graph, _example(graph, 0), binary=protocol == "binary")
    content = folder / "body"
    content.write_bytes(body)
    lines = ["wrk.method = 'POST'", f"wrk.body = io.open('{content}', 'rb'):read('*a')"]
    lines += [f"wrk.headers['{name}'] = '{value}'" for name, value in headers.items()]
    lines += [
        "function done(summary, latency)",
        "  local e = summary.errors",
        "  io.write(string.format('RESULT %f %f %f %d\\n', summary.requests / (summary.duration / 1e6),",
        "    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,",
        "    e.connect + e.read + e.write + e.status + e.timeout))",
        "end",
    ]
    script = folder / "post.lua"
    script.write_text("\n".join(lines))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), endpoints.http + INFER]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (\d+)", output)
    if found is None or int(found[4]):
        raise SystemExit(f"not all requests were answered:\n{output}")
    return float(found[1]), float(found[2]), float(found[3])


def _run_h2load(
    graph: Graph, endpoints: Endpoints, protocol: str, connections: int, seconds: int, folder: Path
) -> tuple[float, float, float]:
    array = _example(graph, 0)
    message = pb.ModelInferRequest(model_name="model")
    message.inputs.add(name=graph.input, datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    serialized = message.SerializeToString()
    content, log = folder / "message", folder / "h2load.log"
    content.write_bytes(b"\x00" + len(serialized).to_bytes(4, "big") + serialized)
    command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"-d{content}", f"--log-file={log}"]
    command += ["-Hcontent-type: application/grpc", "-Hte: trailers", f"http://{endpoints.grpc}{GRPC_INFER}"]
    ok_before = _answered(endpoints)
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in log.read_text().splitlines()]
    log.unlink()
    # gRPC says in its trailers whether a call succeeded, which h2load does not look at.
    if _answered(endpoints) - ok_before < len(lines) or any(status != "200" for _, status, _ in lines):
        raise SystemExit(f"not all calls were answered:\n{output}")
    milliseconds = np.array([int(microseconds) for *_, microseconds in lines]) / 1e3
    return len(lines) / seconds, float(np.percentile(milliseconds, 50)), float(np.percentile(milliseconds, 99))


def _answered(endpoints: Endpoints) -> float:
    with urllib.request.urlopen(endpoints.metrics, timeout=20) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(r'^serveprune_requests_total\{.*code="OK".*\} (\S+)$', text, re.M))


@contextmanager
def _checked(graph: Graph, endpoints: Endpoints) -> Iterator[None]:
    """Send requests of one's own, now and then, and compare every answer with ONNX Runtime's."""
    session, over = _session(graph), threading.Event()
    wrong: list[str] = []

    def check() -> None:
        seed = 0
        while not over.wait(0.1):
            seed += 1
            array = _example(graph, seed)
            (expected,) = session.run(None, {graph.input: array})
            body, headers = _body(graph, array, binary=False)
            request = urllib.request.Request(endpoints.http + INFER, body, headers)
            with urllib.request.urlopen(request, timeout=20) as answer:
                got = np.array(json.load(answer)["outputs"][0]["data"]).reshape(expected.shape)
            if not np.allclose(got, expected, rtol=1e-3, atol=1e-4):
                wrong.append(f"request {seed}: expected {expected.ravel()[:3]}, got {got.ravel()[:3]}")

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if wrong:
        raise SystemExit(f"{len(wrong)} answers were wrong; the first: {wrong[0]}")


@contextmanager
def _profiled(endpoints: Endpoints, protocol: str, connections: int, arguments: argparse.Namespace) -> Iterator[None]:
    if arguments.profile is None:
        yield
        return
    arguments.profile.mkdir(parents=True, exist_ok=True)
    stacks = arguments.profile / f"{arguments.model}-{protocol}-{connections}.txt"
    options: Sequence[str] = ("--format", "raw", "--gil", "--threads", "--rate", "200", "--nonblocking")
    command = [arguments.py_spy, "record", "--pid", str(endpoints.pid), *options]
    command += ["--duration", str(max(1, arguments.seconds - 1)), "--output", str(stacks)]
    sampler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        _, said = sampler.communicate(timeout=PATIENCE_SECONDS)
        if sampler.returncode:
            raise SystemExit(f"py-spy failed: {said.decode()}")


if __name__ == "__main__":
    main()
