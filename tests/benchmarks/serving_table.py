"""Rounds of measurements, and the tables made of their medians."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from in_process_limit import InProcessLimit
from load_generator import Load
from wire_formats import Wire

OWN = "serveprune"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One line of a table."""

    wire: Wire
    connections: int
    server: str
    setting: str


@dataclass(frozen=True, slots=True)
class Round:
    """What one round gave for one line.

    Attributes:
        load: What clients saw.
        server_cpu_ms: Processor time of all of the server's processes per answer; what else the machine does hardly
            changes it.
    """

    load: Load
    server_cpu_ms: float


@dataclass(slots=True)
class ModelTable:
    """All that was measured with one model."""

    model: str
    limit: InProcessLimit
    rounds: dict[Cell, list[Round]] = field(default_factory=dict)

    def add(self, cell: Cell, found: Round) -> None:
        """Keep one round of one line."""
        self.rounds.setdefault(cell, []).append(found)

    def count_error(self, cell: Cell) -> None:
        """Add an error to the last round of a line."""
        last = self.rounds[cell][-1]
        self.rounds[cell][-1] = replace(last, load=replace(last.load, errors=last.load.errors + 1))

    def markdown(self) -> Iterator[str]:
        """Return the lines of the table; ratios are to the best of all peers at the same wire and connections."""
        arrangement, limit = self.limit.best()
        one_row_ms = statistics.median(self.limit.one_row_ms)
        yield f"### {self.model}"
        yield ""
        yield f"In-process limit: {limit:,.0f} rows/s ({arrangement}). One row alone: {one_row_ms:.3f} ms."
        yield ""
        yield (
            "| wire | connections | server | requests/s | of the limit | p50 ms | p99 ms | above in-process ms "
            "| server CPU ms | to the best peer | errors |"
        )
        yield "|---" * 11 + "|"
        for cell in sorted(self.rounds, key=lambda each: (list(Wire).index(each.wire), each.connections)):
            found = _median(self.rounds[cell])
            load = found.load
            best = self._best_peer(cell)
            # With one client nothing waits for another, so all above one run is the server's (and the network's).
            added = f"{load.p50_ms - one_row_ms:.2f}" if cell.connections == 1 else ""
            ratio = f"{load.requests_per_second / best:.2f}x" if best else ""
            yield (
                f"| {cell.wire} | {cell.connections} | {cell.server} ({cell.setting}) | "
                f"{load.requests_per_second:,.1f} | {load.requests_per_second / limit:.2f} | {load.p50_ms:.2f} | "
                f"{load.p99_ms:.2f} | {added} | {found.server_cpu_ms:.3f} | {ratio} | {load.errors} |"
            )

    def document(self) -> dict[str, Any]:
        """Return all rounds, for a JSON file."""
        arrangement, limit = self.limit.best()
        return {
            "model": self.model,
            "limit": {
                "rows_per_second": limit,
                "arrangement": str(arrangement),
                "one_row_ms": statistics.median(self.limit.one_row_ms),
                "all": {str(each): found for each, found in self.limit.rows_per_second.items()},
            },
            "rows": [_row(cell, rounds) for cell, rounds in self.rounds.items()],
        }

    def _best_peer(self, cell: Cell) -> float | None:
        """Return the most requests per second any other server reached, under any of its settings."""
        peers = [
            _median(rounds).load.requests_per_second
            for each, rounds in self.rounds.items()
            if (each.wire, each.connections) == (cell.wire, cell.connections) and each.server != OWN
        ]
        return max(peers, default=None)


def _row(cell: Cell, rounds: Sequence[Round]) -> Mapping[str, Any]:
    median = _median(rounds)
    return {
        "wire": str(cell.wire),
        "connections": cell.connections,
        "server": cell.server,
        "setting": cell.setting,
        "requests_per_second": median.load.requests_per_second,
        "p50_ms": median.load.p50_ms,
        "p99_ms": median.load.p99_ms,
        "server_cpu_ms": median.server_cpu_ms,
        "errors": median.load.errors,
        "rounds_requests_per_second": [each.load.requests_per_second for each in rounds],
    }


def _median(rounds: Sequence[Round]) -> Round:
    """Return the median of each measure; errors and answers are sums, for none may be lost."""
    loads = [each.load for each in rounds]
    return Round(
        Load(
            statistics.median(each.requests_per_second for each in loads),
            statistics.median(each.p50_ms for each in loads),
            statistics.median(each.p99_ms for each in loads),
            sum(each.errors for each in loads),
            sum(each.answers for each in loads),
        ),
        statistics.median(each.server_cpu_ms for each in rounds),
    )
