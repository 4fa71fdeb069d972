"""Print what serving costs: serveprune against four Python servers and against ONNX Runtime without any server.

    python tests/benchmarks/serving.py [--models mlp,fashion,minilm] [--servers serveprune,torchserve,...]
        [--connections 1,8,32] [--protocols json,binary,grpc] [--seconds 5] [--rounds 3] [--all-settings]
        [--json FILE] [--peers .venv-peers]

All serve the same ONNX file on the same two cores, which the load generator shares; each as its documentation
recommends (see `serving_peers/`), in its own virtual environment, installed by this script below the folder `--peers`.
Needed besides: `wrk` and `h2load` (Debian: wrk, nghttp2-client), and Java 17 for TorchServe (openjdk-17-jre-headless).

Servers take turns: in every round each is started, asked real requests whose answers must be those of ONNX Runtime,
warmed up, put under load, and stopped; so what else the machine does meets all alike. The table shows medians of the
rounds. The in-process limit is the best of several batch sizes and of both ways to use two threads, measured in the
same rounds. A window lasts `--seconds`, or longer where a slow model would give few answers in it.

`--servers` may name one setting of a server, `torchserve/batched`; `--all-settings` measures every setting of each.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
from in_process_limit import InProcessLimit
from load_generator import Load, grpc_load, http_load, require_programs
from serving_checks import check_answers
from serving_peers.environments import TORCH, environment_python
from serving_peers.kserve import KServe
from serving_peers.litserve import LitServe
from serving_peers.mlserver import MlServer
from serving_peers.own import ServePrune
from serving_peers.peer import Endpoint, Peer, Setting
from serving_peers.server_process import servers_cpu_seconds
from serving_peers.torchserve import TorchServe
from serving_table import Cell, ModelTable, Round
from serving_workloads import MODELS, Workload, load_workload
from timed_tiers import machine
from wire_formats import Wire

_CORES = 2
_PEERS: Sequence[Peer] = (ServePrune(), TorchServe(), MlServer(), KServe(), LitServe())
_ANSWERS_PER_CONNECTION = 25
"""A window is at least so long that every connection gets so many answers at the in-process limit."""
_LIMIT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server with one setting."""

    peer: Peer
    setting_name: str
    setting: Setting
    python: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of every contestant."""

    connections: Sequence[int]
    wires: Sequence[Wire]
    seconds: float


def main() -> None:
    """Install, measure, print."""
    arguments = _arguments()
    require_programs()
    # So that a server that is running is stopped then, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Servers and load generators inherit it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    plan = Plan(
        [int(count) for count in arguments.connections.split(",")],
        [Wire(wire) for wire in arguments.protocols.split(",")],
        arguments.seconds,
    )
    print(f"{machine()}; Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}; {_CORES} cores\n")
    documents: list[Mapping[str, Any]] = []
    for name in arguments.models.split(","):
        workload = load_workload(name, folder=arguments.peers / "graphs")
        contestants = _contestants(arguments, name)
        table = ModelTable(name, InProcessLimit(workload, cores=_CORES))
        for number in range(arguments.rounds):
            _measure_round(number, table, contestants, plan)
            if arguments.json:
                # After every round, for a long run may be cut short.
                models = [*documents, table.document()]
                found = {"machine": machine(), "until": datetime.now(UTC).isoformat(), "models": models}
                arguments.json.write_text(json.dumps(found, indent=1))
        print("\n".join(table.markdown()) + "\n", flush=True)
        documents.append(table.document())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--servers", default=",".join(peer.name for peer in _PEERS))
    parser.add_argument("--connections", default="1,8,32")
    parser.add_argument("--protocols", default=",".join(Wire))
    parser.add_argument("--seconds", type=float, default=5.0, help="Least length of a measurement.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all-settings", action="store_true", help="Every setting, not only each server's best.")
    parser.add_argument("--json", type=Path, help="Write all rounds to this file.")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="Folder of environments and graphs.")
    parser.add_argument("--torch", default=TORCH, help="What pip is asked for where a peer needs torch.")
    return parser.parse_args()


def _contestants(arguments: argparse.Namespace, model: str) -> list[Contestant]:
    found = []
    for wanted in arguments.servers.split(","):
        name, _, setting = wanted.partition("/")
        peer = next((each for each in _PEERS if each.name == name), None)
        if peer is None:
            raise SystemExit(f"--servers: expected some of {', '.join(each.name for each in _PEERS)}, got {name!r}")
        settings = peer.settings
        if setting and setting not in settings:
            raise SystemExit(f"--servers: {name} has the settings {', '.join(settings)}, got {setting!r}")
        chosen = [setting] if setting else list(settings if arguments.all_settings else peer.best_settings(model))
        python = environment_python(peer, folder=arguments.peers, torch=arguments.torch)
        found += [Contestant(peer, each, settings[each], python) for each in chosen]
    return found


def _measure_round(number: int, table: ModelTable, contestants: Sequence[Contestant], plan: Plan) -> None:
    table.limit.measure(seconds=_LIMIT_SECONDS)
    # The other way round every second time, so that nobody always follows the same server.
    for contestant in contestants if number % 2 == 0 else reversed(contestants):
        _measure(contestant, table.limit.workload, plan, table)
        named = f"{contestant.peer.name} ({contestant.setting_name})"
        load = os.getloadavg()[0]
        print(f"{table.model}, round {number + 1}: {named} done, load {load:.1f}", file=sys.stderr, flush=True)


def _measure(contestant: Contestant, workload: Workload, plan: Plan, table: ModelTable) -> None:
    _, limit = table.limit.best()
    peer = contestant.peer
    with (
        tempfile.TemporaryDirectory(prefix=f"{peer.name}-") as folder,
        peer.serve(workload, contestant.setting, folder=Path(folder), python=contestant.python) as endpoints,
    ):
        for endpoint in endpoints:
            wire = endpoint.format.wire
            if wire not in plan.wires:
                continue
            answer_bytes = check_answers(peer.name, endpoint, workload)
            _load(endpoint, workload, answer_bytes=answer_bytes, connections=max(plan.connections), seconds=1.0)
            for connections in plan.connections:
                seconds = max(plan.seconds, _ANSWERS_PER_CONNECTION * connections / limit)
                before = servers_cpu_seconds()
                load = _load(
                    endpoint, workload, answer_bytes=answer_bytes, connections=connections, seconds=round(seconds, 1)
                )
                cpu_ms = (servers_cpu_seconds() - before) / max(load.answers, 1) * 1000
                cell = Cell(wire, connections, peer.name, contestant.setting_name)
                table.add(cell, Round(load, cpu_ms))
            # After the load it must still be right, and over gRPC no other check sees a status.
            check_answers(peer.name, endpoint, workload)


def _load(endpoint: Endpoint, workload: Workload, *, answer_bytes: int, connections: int, seconds: float) -> Load:
    requests = [endpoint.format.encode(feeds) for feeds in workload.feeds]
    bodies, headers = [body for body, _ in requests], requests[0][1]
    authority, path = f"127.0.0.1:{endpoint.port}", endpoint.format.path
    if endpoint.format.wire is Wire.GRPC:
        return grpc_load(
            authority, path, bodies[0], answer_bytes=answer_bytes, connections=connections, seconds=seconds
        )
    return http_load(f"http://{authority}{path}", bodies, headers=headers, connections=connections, seconds=seconds)


if __name__ == "__main__":
    main()
