"""What lies where, and what is said about it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    *("pyproject.toml", "serveprune", "handlers", "protos", "deploy", "tests", "Dockerfile"),
    *("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "AGENTS.md", "LICENSE", "Makefile"),
    *("docs", ".ci", ".gitignore", ".dockerignore"),
}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

_PATH = re.compile(r"`([\w./-]+(?:\.py|/))`")


@pytest.fixture(scope="module")
def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this is no checkout: {error}")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_top_level_holds_nothing_else(tracked_files: list[Path]) -> None:
    assert {file.parts[0] for file in tracked_files} <= TOP_LEVEL


def test_no_module_has_a_name_that_says_nothing(tracked_files: list[Path]) -> None:
    offenders = [file for file in tracked_files if NAMES_THAT_SAY_NOTHING & {*file.parent.parts, file.stem}]

    assert offenders == []


def test_every_path_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(_PATH.findall(text))

    # Paths are given from the top or, as in the map of the package, from the package.
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / "serveprune" / path).exists()]

    assert len(named) > 10
    assert missing == []


def test_every_package_is_on_the_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = {folder.parent.name for folder in (ROOT / "serveprune").glob("*/__init__.py")}

    assert {package for package in packages if f"{package}/" not in text} == set()
