"""The walk in CONTRIBUTING.md, followed to the letter on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<language>\w+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


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


def test_walk_adds_a_pass_that_compresses_the_demo_network(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "serveprune", tmp_path / "serveprune")
    commands: list[str] = []
    for block in BLOCK.finditer((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        if block["language"] == "diff":
            apply_diff(tmp_path, block["text"])
        elif block["file"]:
            (tmp_path / block["file"]).write_text(block["text"], encoding="utf-8")
        else:
            commands += block["text"].split()[1:]
    run = subprocess.run(
        [sys.executable, "-m", "serveprune", *commands, "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["outcome"] == "built"
    assert result["bytes"]["tier"] < 0.6 * result["bytes"]["dense"]
    assert result["quality"]["top1_agreement"] > 0.99
    manifest = json.loads((tmp_path / "fashion-half" / "manifest.json").read_text())
    assert manifest["passes"][0]["report"]["halved_weights"] > 5
