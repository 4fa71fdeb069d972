from collections.abc import Callable
from pathlib import Path

import pytest

from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig
from serveprune.errors import ConfigError

Load = Callable[[str], ServePruneConfig]
Problems = Callable[[str], list[str]]

MODEL = "models: {m: {source: {onnx: model.onnx}}}\n"


def model(entries: str) -> str:
    """A config whose line 4 begins with these entries of the model `m`."""
    return f"models:\n  m:\n    source: {{onnx: model.onnx}}\n    {entries}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file of every kind that a config can name; loading looks whether they are there."""
    for name in ("model.onnx", "model.pt2", "weights.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"content")
    for name in ("calibration.jsonl", "evaluation.npz"):
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")
    (tmp_path / "no-model").mkdir()
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    def load(text: str) -> ServePruneConfig:
        file = folder / "serveprune.yaml"
        file.write_text(text, encoding="utf-8")
        return load_config(file, environment={"PORT": "9000", "EMPTY": "", "HOME_OF_MODELS": str(folder)})

    return load


@pytest.fixture
def problems(load: Load, folder: Path) -> Problems:
    """The problems of a text, with the folder cut off: each begins with ``serveprune.yaml:LINE:``."""

    def problems(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text)
        return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]

    return problems
