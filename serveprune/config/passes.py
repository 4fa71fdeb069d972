from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from serveprune.config.base import ConfigModel


class PassOptions(ConfigModel):
    """Options of one compression pass.

    ``revision`` is part of every artifact key: raise it when the pass would write a different graph for the
    same options, and old artifacts are built anew.
    """

    revision: ClassVar[int]

    def files(self) -> Mapping[str, Path]:
        """Return the files that options name, by the option's place (``section.key``): their content is what counts."""
        return {}
