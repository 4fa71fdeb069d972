from pathlib import Path
from typing import Literal

from pydantic import Field

from serveprune.config.base import ConfigModel
from serveprune.config.locations import FolderToBe
from serveprune.config.names import Name
from serveprune.config.numbers import Number


class RepositoryConfig(ConfigModel):
    """A folder of models that are loaded and unloaded while the server runs, beside those of this file.

    Each is a folder that is named as the model: with `model.onnx`, a `.pt2` file or what `save_pretrained` leaves, or
    with a folder of that kind for each version. A `serveprune.yaml` in it may say what an entry of `models` says.
    """

    path: FolderToBe = Field(default=Path("models"), validate_default=True, description="The folder.")
    mode: Literal["none", "explicit", "poll"] = Field(
        default="none",
        description="`none`: nothing of it is served. `explicit`: clients load and unload models by the protocol's "
        "repository extension; do not offer that to clients you do not trust. `poll`: what is in the folder is served.",
    )
    poll_seconds: Number = Field(
        default=2.0,
        ge=0.1,
        le=86_400,
        description="With `poll`: how often the folder is looked at. What is the same at two looks is taken to be "
        "whole.",
    )
    load_at_start: tuple[Name, ...] = Field(
        default=(), description="With `explicit`: what is loaded when the server starts."
    )
