"""The walks in CONTRIBUTING.md, followed to the letter on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<language>\w+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PASS, OPERATOR = "How to add a pass", "How to teach the coupling table a new op"


def apply_diff(folder: Path, diff: str) -> None:
    """Replace the context and removed lines of a diff with its context and added lines; they must stand there once."""
    head, _, body = diff.partition("@@\n")
    file = folder / head.split("+++ b/")[1].split()[0]
    lines = body.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{file.name} no longer holds these lines:\n{before}"
    file.write_text(text.replace(before, after), encoding="utf-8")


def follow(walk: str, folder: Path) -> list[str]:
    """Make the changes of one section on a copy of the repository; return the words of its command, if it has one."""
    for name in ("serveprune", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    _, _, section = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"\n## {walk}\n")
    assert section, f"there is no section {walk!r}"
    commands: list[str] = []
    for block in BLOCK.finditer(section.partition("\n## ")[0]):
        if block["language"] == "diff":
            apply_diff(folder, block["text"])
        elif block["file"]:
            (folder / block["file"]).write_text(block["text"], encoding="utf-8")
        else:
            commands += block["text"].split()[1:]
    return commands


def run_python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_walk_adds_a_pass_that_compresses_the_demo_network(tmp_path: Path) -> None:
    commands = follow(PASS, tmp_path)
    run = run_python("-m", "serveprune", *commands, "--json", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["outcome"] == "built"
    assert result["bytes"]["tier"] < 0.6 * result["bytes"]["dense"]
    assert result["quality"]["top1_agreement"] > 0.99
    manifest = json.loads((tmp_path / "fashion-half" / "manifest.json").read_text())
    assert manifest["passes"][0]["report"]["halved_weights"] > 5


@pytest.mark.parametrize("walked", [True, False])
def test_walk_teaches_an_operator_that_was_kept_before(walked: bool, tmp_path: Path) -> None:
    follow(OPERATOR, tmp_path)
    if not walked:  # the row alone must fail, or it would show nothing
        rule = "serveprune/compression/pruning/coupling/convolution.py"
        shutil.copy(REPOSITORY / rule, tmp_path / rule)
    table = "tests/unit/compression/pruning/test_coupling.py"
    run = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", table, "-k", "GridSample", folder=tmp_path)
    assert ("1 passed" if walked else "1 failed") in run.stdout, run.stdout
