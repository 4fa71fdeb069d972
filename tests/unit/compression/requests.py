"""Build requests for the small graphs, and where they are kept."""

from pathlib import Path
from typing import Any

import numpy as np
from unit.compression.graphs import convolutional_graph, images

from serveprune.artifacts.builder import BuildRequest
from serveprune.artifacts.store import ArtifactStore
from serveprune.config.model import DatasetConfig, ModelConfig, OnnxSource
from serveprune.config.profile import ProfileConfig
from serveprune.config.server import StoreConfig


def image_files(folder: Path) -> tuple[Path, Path]:
    """A calibration and an evaluation set for `convolutional_graph`."""
    calibration, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
    np.savez(calibration, image=images(24, seed=1))
    np.savez(evaluation, image=images(32, seed=2))
    return calibration, evaluation


def convolutional_model(folder: Path) -> ModelConfig:
    calibration, evaluation = image_files(folder)
    return ModelConfig(
        source=OnnxSource(onnx=convolutional_graph(folder / "net.onnx")),
        calibration=DatasetConfig(file=calibration, samples=None),
        evaluation=DatasetConfig(file=evaluation, samples=None),
    )


def int8(*, options: dict[str, Any] | None = None, **gate: float) -> ProfileConfig:
    return ProfileConfig.model_validate({"passes": [{"quantize": options or {"dtype": "int8"}}], "gate": gate})


def tier_request(model: ModelConfig, profile: ProfileConfig | None = None) -> BuildRequest:
    return BuildRequest(model_name="net", model=model, tier="int8", profile=profile or int8())


def store_at(path: Path) -> tuple[StoreConfig, ArtifactStore]:
    config = StoreConfig(path=path)
    return config, ArtifactStore(config.folder, max_bytes=config.max_bytes)
