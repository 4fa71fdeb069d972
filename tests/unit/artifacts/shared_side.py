"""Two machines are two folders over one fsspec file system; each test has a prefix of its own."""

from collections.abc import Callable
from typing import Any

import fsspec

from serveprune.artifacts.shared_store import SharedArtifactStore

Machine = Callable[[str], SharedArtifactStore]


def objects(url: str) -> tuple[Any, list[str]]:
    files, root = fsspec.core.url_to_fs(url)
    return files, sorted(files.find(root))


def damage(url: str, part: str, content: bytes) -> None:
    files, names = objects(url)
    found = [each for each in names if part in each]
    assert found
    for name in found:
        files.pipe_file(name, content)
