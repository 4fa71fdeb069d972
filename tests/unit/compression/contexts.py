"""What a pass is given, for tests that apply one."""

from pathlib import Path
from typing import Any

import numpy as np

from serveprune.compression.passes import PassContext
from serveprune.config.passes import PassOptions
from serveprune.evaluation.dataset import Dataset
from serveprune.oip.tensor import Array


def image_set(rows: Array, *, labels: Array | None = None) -> Dataset:
    return Dataset(tuple({"image": row} for row in rows), labels=labels)


def pass_context(
    options: PassOptions, *, calibration: Array | Dataset | None, workspace: Path, **more: Any
) -> PassContext:
    samples = image_set(calibration) if isinstance(calibration, np.ndarray) else calibration
    return PassContext(
        options=options,
        calibration=samples,
        cpu="",
        threads=1,
        seed=0,
        workspace=workspace,
        progress=lambda fraction: None,
        **more,
    )
