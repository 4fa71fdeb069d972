"""Which of its settings a peer is measured with: the one that answered most here, for each model and wire.

Documentation names the settings that matter, and says that values are found by trying. So every setting of every peer
is tried once, with the most connections, and what did best is kept in a file for later runs.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from in_process_limit import InProcessLimit
from serving_rounds import Contestant, Plan, measure_round
from serving_table import Cell, ModelTable
from serving_workloads import Workload
from wire_formats import Wire

_SECONDS = 2.0
_ANSWERS_PER_CONNECTION = 10


def tuned(
    contestants: Sequence[Contestant], workload: Workload, *, connections: int, cores: int, file: Path, again: bool
) -> list[Contestant]:
    """Return for each peer its best setting of each wire; one that is best of none is left out.

    Args:
        contestants: All settings of the peers.
        workload: The model.
        connections: With which they are tried.
        cores: For the in-process limit, which decides how long a try takes.
        file: Where choices are kept.
        again: Try even where a choice is kept.
    """
    kept: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
    choices = {} if again else dict(kept.get(workload.name, {}))
    untried = [each for each in contestants if any(_key(each, wire) not in choices for wire in each.wires)]
    if untried:
        table = ModelTable(workload.name, InProcessLimit(workload, cores=cores))
        measure_round(table, untried, Plan([connections], _SECONDS, _ANSWERS_PER_CONNECTION), title="choosing settings")
        # Nothing is chosen where a server does not speak a wire, and that is no reason to try again.
        choices |= {_key(each, wire): "" for each in untried for wire in each.wires} | _best(table)
        file.write_text(json.dumps({**kept, workload.name: choices}, indent=1))
    chosen = [
        replace(each, wires=[wire for wire in each.wires if choices.get(_key(each, wire)) == each.setting_name])
        for each in contestants
    ]
    return [each for each in chosen if each.wires]


def _best(table: ModelTable) -> dict[str, str]:
    ordered = sorted(table.rounds, key=lambda cell: table.rounds[cell][0].load.requests_per_second)
    # The last one of each key, which answered most, stays.
    return {_cell_key(cell): cell.setting for cell in ordered}


def _key(contestant: Contestant, wire: Wire) -> str:
    return f"{contestant.peer.name} {wire}"


def _cell_key(cell: Cell) -> str:
    return f"{cell.server} {cell.wire}"
