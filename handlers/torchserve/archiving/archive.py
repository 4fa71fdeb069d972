"""Writes an archive with torch-model-archiver."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from serveprune.config.model import ModelConfig
from serveprune.config.root import ServePruneConfig
from serveprune.errors import FailedPrecondition
from serveprune.handlers.torchserve.archiving.content import lay_out
from serveprune.handlers.torchserve.installation import require_package
from serveprune.handlers.torchserve.settings import SECTION

CONFIG_FILE = "model-config.yaml"
_HANDLER_FILE = Path(__file__).parent.parent / "archived_handler.py"
_STARTUP_SECONDS = 660
"""More than the handler itself waits for dense, so that its own message is what one reads."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """What TorchServe does with the model's requests before the handler has them.

    Attributes:
        workers: Processes, each with all tiers loaded.
        batch_size: Requests handed over at once, at the most.
        max_batch_delay_ms: How long the first of them waits for others; all of it, unless the batch is full.
        response_timeout_seconds: A worker that takes longer for one batch is killed.
    """

    workers: int = 1
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_seconds: int = 120

    def keys(self, model: ModelConfig) -> dict[str, int]:
        """Return the keys of `model-config.yaml` that TorchServe reads itself."""
        delay = self.max_batch_delay_ms
        return {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": model.max_batch_size if self.batch_size is None else self.batch_size,
            # With 0 a batch has two requests at the most, however many wait.
            "maxBatchDelay": max(round(model.max_queue_delay_ms), 1) if delay is None else delay,
            "responseTimeout": self.response_timeout_seconds,
            "startupTimeout": _STARTUP_SECONDS,
        }


def write_archive(
    config: ServePruneConfig,
    model: ModelConfig,
    *,
    name: str,
    out: Path,
    frontend: Frontend,
    handler: Mapping[str, Any] = MappingProxyType({}),
    replace: bool = False,
) -> Path:
    """Write a model with all its files and settings as `NAME.mar`, whole or not at all; return its path.

    Args:
        config: The config that the model is of.
        model: One version of it.
        name: Of the model, and of the archive.
        out: The model store; made when it is not there.
        frontend: What TorchServe is told about the model.
        handler: What the handler is told beside what the config says.
        replace: Whether an archive of this name may be replaced.

    Raises:
        MissingExtra: torch-model-archiver is not installed.
        NotFound: A file or module that the model names does not exist.
        FailedPrecondition: There is such an archive already, or it cannot be written.
    """
    require_package("torch-model-archiver")
    archive = out / f"{name}.mar"
    if archive.exists() and not replace:
        raise FailedPrecondition(f"{archive} exists already; --force replaces it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # On the disk of the archive, where it then only has to be renamed.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as work:
            _archived(config, model, name=name, work=Path(work), frontend=frontend, handler=handler).replace(archive)
    except OSError as error:
        raise FailedPrecondition(f"{archive} cannot be written: {error}") from error
    return archive


def _archived(
    config: ServePruneConfig,
    model: ModelConfig,
    *,
    name: str,
    work: Path,
    frontend: Frontend,
    handler: Mapping[str, Any],
) -> Path:
    content = work / "content"
    content.mkdir()
    settings: dict[str, Any] = {
        **frontend.keys(model),
        "handler": {SECTION: {**lay_out(config, model, name=name, folder=content), **handler}},
    }
    (work / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (work / "temporary").mkdir()
    options = {
        "--model-name": name,
        "--version": model.version,
        "--handler": str(_HANDLER_FILE),
        # Of a folder it takes what is in it, folders included.
        "--extra-files": content.name,
        "--config-file": CONFIG_FILE,
        "--export-path": ".",
        # Weights hardly shrink.
        "--archive-format": "zip-store",
    }
    finished = subprocess.run(
        [sys.executable, "-m", "model_archiver.model_packaging", *(word for pair in options.items() for word in pair)],
        cwd=work,
        # It empties the folder of the model's name where temporary files go.
        env=os.environ | {"TMPDIR": str((work / "temporary").absolute())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    archive = work / f"{name}.mar"
    if finished.returncode != 0 or not archive.is_file():
        last = (finished.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FailedPrecondition(f"model {name}: torch-model-archiver ended with {finished.returncode}: {last}")
    return archive
