import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from serveprune.config.loading import load_config
from serveprune.config.model import DENSE
from serveprune.config.root import ServePruneConfig

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "reference"
EXAMPLE_FILES = (
    "models/minilm/config.json",
    "models/minilm/tokenizer.json",
    "models/boots.onnx",
    "models/boots_start.safetensors",
    "models/ranker.safetensors",
    "models/detector.pt2",
    "models/topics-1.onnx",
    "models/topics-2.onnx",
    "data/sentences_calibration.jsonl",
    "data/sentences_evaluation.jsonl",
    "data/boots_calibration.npz",
    "data/boots_evaluation.npz",
    "tls/server.crt",
    "tls/server.key",
    "tls/clients.crt",
    "tls/tokens",
    "tls/admin-tokens",
)


def example() -> str:
    (text,) = re.findall(r"```yaml\n(.*?)```", (REFERENCE / "config.md").read_text(), flags=re.DOTALL)
    return str(text)


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deploy" / "generate_reference.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False)


def test_the_example_of_the_reference_page_loads(tmp_path: Path) -> None:
    for name in EXAMPLE_FILES:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    file = tmp_path / "serveprune.yaml"
    file.write_text(example())
    config = load_config(file, environment={})
    assert config.models["minilm"].tiers == (DENSE, "int8")
    assert {type(model.source).__name__ for model in config.served().values()} == {
        "HuggingFaceSource",
        "OnnxSource",
        "TorchSource",
        "ExportedProgramSource",
        "ArtifactSource",
    }


def test_the_example_of_the_reference_page_shows_every_key() -> None:
    shown = set(keys(yaml.safe_load(example())))
    declared = {name for model in set(models(ServePruneConfig)) for name in model.model_fields}
    assert declared - shown == set()


def keys(value: Any) -> Iterator[str]:
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield str(key)
        yield from keys(each)


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for argument in get_args(annotation):
        yield from models(argument)


@pytest.mark.parametrize("page", ["config.md", "errors.md", "metrics.md"])
def test_check_exits_with_a_diff_when_a_page_is_out_of_date(page: str, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    assert generate("--folder", str(folder)).returncode == 0
    assert generate("--folder", str(folder), "--check").returncode == 0
    path = folder / page
    path.write_text(path.read_text().replace("| --- |", "| - |", 1))
    checked = generate("--folder", str(folder), "--check")
    assert checked.returncode == 1
    assert f"--- present/{page}" in checked.stderr
    assert re.search(r"^\+\| --- \|", checked.stderr, flags=re.MULTILINE)
    shutil.rmtree(folder)
    assert generate("--folder", str(folder), "--check").returncode == 1
    assert not folder.exists()
