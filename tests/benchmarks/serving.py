"""Print what serving costs: serveprune against four Python servers and against ONNX Runtime without any server.

    python tests/benchmarks/serving.py [--models mlp,conv,fashion,minilm] [--servers serveprune,torchserve,...]
        [--connections 1,8,32] [--protocols json,binary,grpc] [--seconds 5] [--rounds 3]
        [--all-settings | --choose-again] [--json FILE] [--peers .venv-peers]

All serve the same ONNX file on the same two cores, which the load generator shares; each as its documentation
recommends (see `serving_peers/`), in its own virtual environment, installed by this script below the folder `--peers`.
Needed besides: `wrk` and `h2load` (Debian: wrk, nghttp2-client), and Java 17 for TorchServe (openjdk-17-jre-headless).

Servers take turns: in every round each is started, asked real requests whose answers must be those of ONNX Runtime,
warmed up, put under load, and stopped; so what else the machine does meets all alike. The table shows medians of the
rounds. The in-process limit is the best of several batch sizes and of both ways to use two threads, measured in the
same rounds. A window lasts `--seconds`, or longer where a slow model would give few answers in it.

Of each peer's settings the one that answers most at the most connections is measured, for each model and wire: all are
tried once and the choice is kept in the folder of the peers (`--choose-again` tries anew). `--servers` may name one
setting, `torchserve/batched`; `--all-settings` measures every setting of each. Of serveprune all are measured.
"""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
from in_process_limit import InProcessLimit
from load_generator import require_programs
from serving_peers.environments import TORCH, environment_python
from serving_peers.kserve import KServe
from serving_peers.litserve import LitServe
from serving_peers.mlserver import MlServer
from serving_peers.own import ServePrune
from serving_peers.peer import Peer
from serving_peers.torchserve import TorchServe
from serving_rounds import Contestant, Plan, measure_round
from serving_table import OWN, ModelTable
from serving_tuning import tuned
from serving_workloads import MODELS, Workload, load_workload
from timed_tiers import machine
from wire_formats import Wire

_CORES = 2
_PEERS: Sequence[Peer] = (ServePrune(), TorchServe(), MlServer(), KServe(), LitServe())


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
        arguments.seconds,
    )
    print(f"{machine()}; Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}; {_CORES} cores\n")
    documents: list[Mapping[str, Any]] = []
    for name in arguments.models.split(","):
        workload = load_workload(name, folder=arguments.peers / "graphs")
        contestants = _contestants(arguments, workload)
        table = ModelTable(name, InProcessLimit(workload, cores=_CORES))
        for number in range(arguments.rounds):
            measure_round(table, contestants, plan, title=f"round {number + 1}")
            # The other way round next time, so that nobody always follows the same server.
            contestants.reverse()
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
    parser.add_argument("--all-settings", action="store_true", help="Every setting, not only each peer's best.")
    parser.add_argument("--choose-again", action="store_true", help="Try every setting of the peers anew.")
    parser.add_argument("--json", type=Path, help="Write all rounds to this file.")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="Folder of environments and graphs.")
    parser.add_argument("--torch", default=TORCH, help="What pip is asked for where a peer needs torch.")
    return parser.parse_args()


def _contestants(arguments: argparse.Namespace, workload: Workload) -> list[Contestant]:
    wires = [Wire(wire) for wire in arguments.protocols.split(",")]
    fixed: list[Contestant] = []
    open_to_choice: list[Contestant] = []
    for wanted in arguments.servers.split(","):
        name, _, setting = wanted.partition("/")
        peer = next((each for each in _PEERS if each.name == name), None)
        if peer is None:
            raise SystemExit(f"--servers: expected some of {', '.join(each.name for each in _PEERS)}, got {name!r}")
        if setting and setting not in peer.settings:
            raise SystemExit(f"--servers: {name} has the settings {', '.join(peer.settings)}, got {setting!r}")
        python = environment_python(peer, folder=arguments.peers, torch=arguments.torch)
        found = [Contestant(peer, each, python, wires) for each in ([setting] if setting else peer.settings)]
        as_they_are = setting or arguments.all_settings or name == OWN
        (fixed if as_they_are else open_to_choice).extend(found)
    chosen = tuned(
        open_to_choice,
        workload,
        connections=max(int(count) for count in arguments.connections.split(",")),
        cores=_CORES,
        file=arguments.peers / "settings.json",
        again=arguments.choose_again,
    )
    return [*fixed, *chosen]


if __name__ == "__main__":
    main()
