"""What lies in a store."""

from collections.abc import Iterator
from pathlib import Path

from unit.artifacts.artifact_factory import digest

from serveprune.artifacts.store import ArtifactStore


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def quarantine(store: ArtifactStore) -> Iterator[tuple[str, str]]:
    """Name and reason of each thing set aside."""
    for folder in sorted((store.root / "quarantine").glob("*")):
        yield folder.name, (folder / "reason.txt").read_text()


def import_record(store: ArtifactStore, name: str = "source") -> Path:
    [record] = (store.root / "imports" / digest(name)).glob("*.json")
    return record
