"""Where a training goes on after a kill."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)

_REVISION = 1
"""Raise it when a state means something else than before."""


class CheckpointFile:
    """One state of a training on disk: tensors, numbers, text, and lists and mappings of them; no code."""

    def __init__(self, path: Path | None) -> None:
        """Remember the place; nothing need be there.

        Args:
            path: A name of its own for everything the training depends on; None keeps nothing.
        """
        self._path = path

    def read(self) -> dict[str, Any] | None:
        """Return the state that was kept; one that cannot be read counts as none."""
        if self._path is None or not self._path.exists():
            return None
        try:
            state = torch.load(self._path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises whatever its parsers stumble over
            _log.warning("the checkpoint %s cannot be read, so the training begins anew: %s", self._path, error)
            return None
        if not isinstance(state, dict) or state.get("revision") != _REVISION:
            return None
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state instead of the one before, whole or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.draft")
        try:
            with draft.open("wb") as file:
                torch.save({"revision": _REVISION, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)

    def remove(self) -> None:
        """Leave nothing, for the training has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
