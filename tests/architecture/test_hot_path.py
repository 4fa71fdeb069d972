"""What a request must not meet on its way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "serveprune"
FOLDERS = ("frontends", "oip", "serving", "routing", "scheduling", "models", "backends")
SLOW = {"pydantic", "json"}
READ_AT_LOAD = {"backends/mapped_graph.py"}
"""Off the path: these work once for a variant, not for a request."""


def modules() -> list[Path]:
    return [
        file
        for folder in FOLDERS
        for file in sorted((PACKAGE / folder).rglob("*.py"))
        if "pb" not in file.parent.parts and str(file.relative_to(PACKAGE)) not in READ_AT_LOAD
    ]


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_hot_path_imports_neither_pydantic_nor_the_standard_json(file: Path) -> None:
    assert SLOW & set(imported(file)) == set()


def test_hot_path_is_where_it_is_looked_for() -> None:
    assert {file.parent.name for file in modules()} >= {"http", "grpc", "oip", "serving", "scheduling"}
    assert "orjson" in set(imported(PACKAGE / "oip" / "json_codec.py"))
