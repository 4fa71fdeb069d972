from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serving_workloads import Workload
from wire_formats import WireFormat

INSIDE = Path(__file__).parent / "inside"
"""Code that runs in the environments of the peers."""

REQUIREMENTS = Path(__file__).parent / "requirements"
"""Every package of every environment, with its version."""

Setting = Mapping[str, float | str]
"""What can be set on one server, by the names that its own file explains."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running server takes requests, and how they are written."""

    port: int
    format: WireFormat


class Peer(Protocol):
    """A server that can be measured.

    Attributes:
        name: As it stands in the table.
        needs_torch: Whether its environment gets torch, which comes first and alone.
        settings: Sensible ones, by name.
    """

    name: str
    needs_torch: bool
    settings: Mapping[str, Setting]

    def serve(
        self, workload: Workload, setting: Setting, *, folder: Path, python: Path
    ) -> AbstractContextManager[Sequence[Endpoint]]:
        """Run it in an empty folder with the Python of its environment while the context lasts."""
        ...
