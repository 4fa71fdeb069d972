from typing import ClassVar

from serveprune.config.base import ConfigModel


class PassOptions(ConfigModel):
    """Options of one compression pass.

    ``revision`` is part of every artifact key: raise it when the pass would write a different graph for the
    same options, and old artifacts are built anew.
    """

    revision: ClassVar[int]
