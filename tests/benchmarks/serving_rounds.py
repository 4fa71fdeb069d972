"""One round: every server is started, checked, warmed up, put under load, checked again and stopped."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from load_generator import Load, grpc_load, http_load
from serving_checks import NoAnswerError, check_answers
from serving_peers.peer import Endpoint, Peer, Setting
from serving_peers.server_process import servers_cpu_seconds
from serving_table import Cell, ModelTable, Round
from serving_workloads import Workload
from wire_formats import Wire

_LIMIT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server with one setting, on the wires where this is to be measured."""

    peer: Peer
    setting_name: str
    python: Path
    wires: Sequence[Wire]

    @property
    def setting(self) -> Setting:
        """What the name stands for."""
        return self.peer.settings[self.setting_name]


@dataclass(frozen=True, slots=True)
class Plan:
    """How every contestant is measured.

    Attributes:
        connections: One measurement with each number of them.
        seconds: Least length of a measurement.
        answers_per_connection: A measurement is at least so long that each connection gets so many answers at the
            in-process limit: a slow model would give few within the seconds.
    """

    connections: Sequence[int]
    seconds: float
    answers_per_connection: int = 25


def measure_round(table: ModelTable, contestants: Sequence[Contestant], plan: Plan, *, title: str) -> None:
    """Measure the in-process limit, then all contestants in this order."""
    table.limit.measure(seconds=_LIMIT_SECONDS)
    for contestant in contestants:
        _measure(contestant, table.limit.workload, plan, table)
        named = f"{contestant.peer.name} ({contestant.setting_name})"
        load = os.getloadavg()[0]
        print(f"{table.model}, {title}: {named} done, load {load:.1f}", file=sys.stderr, flush=True)


def _measure(contestant: Contestant, workload: Workload, plan: Plan, table: ModelTable) -> None:
    _, limit = table.limit.best()
    peer = contestant.peer
    with (
        tempfile.TemporaryDirectory(prefix=f"{peer.name}-") as folder,
        peer.serve(workload, contestant.setting, folder=Path(folder), python=contestant.python) as endpoints,
    ):
        for endpoint in endpoints:
            wire = endpoint.format.wire
            if wire not in contestant.wires:
                continue
            answer_bytes = check_answers(peer.name, endpoint, workload)
            _load(endpoint, workload, answer_bytes=answer_bytes, connections=max(plan.connections), seconds=1.0)
            for connections in plan.connections:
                seconds = max(plan.seconds, plan.answers_per_connection * connections / limit)
                before = servers_cpu_seconds()
                load = _load(
                    endpoint, workload, answer_bytes=answer_bytes, connections=connections, seconds=round(seconds, 1)
                )
                cpu_ms = (servers_cpu_seconds() - before) / max(load.answers, 1) * 1000
                cell = Cell(wire, connections, peer.name, contestant.setting_name)
                table.add(cell, Round(load, cpu_ms))
            # After the load it must still be right, and over gRPC no other check sees a status.
            try:
                check_answers(peer.name, endpoint, workload)
            except NoAnswerError as error:
                print(f"{peer.name} ({contestant.setting_name}), after the load: {error}", file=sys.stderr)
                table.count_error(cell)


def _load(endpoint: Endpoint, workload: Workload, *, answer_bytes: int, connections: int, seconds: float) -> Load:
    requests = [endpoint.format.encode(feeds) for feeds in workload.feeds]
    bodies, headers = [body for body, _ in requests], requests[0][1]
    authority, path = f"127.0.0.1:{endpoint.port}", endpoint.format.path
    if endpoint.format.wire is Wire.GRPC:
        return grpc_load(
            authority, path, bodies[0], answer_bytes=answer_bytes, connections=connections, seconds=seconds
        )
    return http_load(f"http://{authority}{path}", bodies, headers=headers, connections=connections, seconds=seconds)
