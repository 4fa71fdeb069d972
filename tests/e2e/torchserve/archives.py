"""Archives of models, made by `torch-model-archiver` as an operator makes them."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import serveprune.handlers.torchserve.archived_handler as archived_handler


def archive(
    store: Path,
    name: str,
    *,
    python: Path,
    said: Mapping[str, Any],
    files: Sequence[Path] = (),
    serialized_file: Path | None = None,
    model_file: Path | None = None,
    workers: int = 1,
    batch_size: int = 1,
    batch_delay_ms: int = 1,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Put an archive into a model store.

    Args:
        store: Of TorchServe.
        name: Of the model.
        python: Interpreter that has `torch-model-archiver` beside it.
        said: Under `handler.serveprune` in its `model-config.yaml`.
        files: Added to it; of a folder, what is in it.
        serialized_file: Its weights, if it has such that the archiver knows.
        model_file: Its Python code, likewise.
        workers: To start.
        batch_size: Of TorchServe.
        batch_delay_ms: Which TorchServe waits in full for a batch that is not.
        environment: Of the archiver.
    """
    settings = {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": batch_size,
        "maxBatchDelay": batch_delay_ms,
        "responseTimeout": 60,
        "startupTimeout": 300,
        "handler": {"serveprune": dict(said)},
    }
    own = store.parent / "archived" / name
    own.mkdir(parents=True)
    store.mkdir(exist_ok=True)
    # JSON is YAML.
    (own / "model-config.yaml").write_text(json.dumps(settings), encoding="utf-8")
    assert archived_handler.__file__ is not None
    command: list[str | Path] = [python.parent / "torch-model-archiver", "--model-name", name, "--version", "1.0"]
    command += ["--handler", archived_handler.__file__, "--export-path", store]
    command += ["--config-file", own / "model-config.yaml"]
    for option, value in (("--serialized-file", serialized_file), ("--model-file", model_file)):
        command += [option, value] if value is not None else []
    command += ["--extra-files", ",".join(map(str, files))] if files else []
    # It works in the folder for temporary files, under the model's name.
    own_environment = {**os.environ, **environment, "TMPDIR": str(own)}
    subprocess.run(command, check=True, capture_output=True, env=own_environment, timeout=300)
