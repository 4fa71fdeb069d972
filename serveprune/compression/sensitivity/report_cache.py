"""Reports on disk, so that the same question is measured once."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from serveprune.artifacts.digest import sha256_json
from serveprune.compression.sensitivity.report import SensitivityReport

_log = logging.getLogger(__name__)

_REVISION = 1
"""Part of every key: raised when a report would be measured differently."""


class ReportCache:
    """One report in the store's pass cache."""

    def __init__(self, folder: Path, *, recipe: Mapping[str, object]) -> None:
        """Name the entry.

        Args:
            folder: Where entries are.
            recipe: Everything the report depends on.
        """
        self._path = folder / f"{sha256_json({'sensitivity': _REVISION, **recipe})}.json"

    def read(self) -> SensitivityReport | None:
        """Return the report if it was kept; one that cannot be read is made anew."""
        try:
            report = SensitivityReport.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            _log.warning("the report in %s cannot be read and is made anew: %s", self._path, error)
            return None
        return report.model_copy(update={"cached": True})

    def write(self, report: SensitivityReport) -> None:
        """Keep a report, whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{os.getpid()}.draft")
        # What is computed is computed again.
        draft.write_text(report.model_dump_json(exclude={"least_loss"}), encoding="utf-8")
        draft.replace(self._path)
