import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serveprune.artifacts.digest import sha256_json
from serveprune.config.document import parse_document
from serveprune.config.expansion import escaped
from serveprune.config.loading import load_config, load_config_content
from serveprune.config.root import ServePruneConfig
from serveprune.config.surroundings import completed_by_surroundings
from serveprune.errors import ConfigError

_RELOADED = ("models", "profiles", "deployments")
_NAME = "user_config"
_NO_VARIABLES: Mapping[str, str] = {}
_LINE = re.compile(rf"{_NAME}:\d+: ")


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """What `serveprune.yaml` said when the application was built; the same in every process, whatever the file is now.

    Attributes:
        folder: Relative paths are relative to it.
        document: Its data, variables of the environment replaced, and completed by what the environment says besides.
    """

    folder: Path
    document: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> "ConfigSource":
        """Read the file.

        Raises:
            ConfigError: Something in it is wrong, or is not for Ray Serve; the message names each place.
        """
        config = load_config(file)
        problems = _not_here(config)
        if problems:
            raise ConfigError([f"{file}: {each}" for each in problems])
        text = file.read_text(encoding="utf-8-sig")
        data = parse_document(text, environment=os.environ).data
        return cls(file.parent.absolute(), completed_by_surroundings(data, os.environ))

    @property
    def digest(self) -> str:
        """Tells it from others."""
        return sha256_json([str(self.folder), self.document])

    def config(self, sections: Mapping[str, Any] | None = None) -> ServePruneConfig:
        """Return the config with these sections in place of the file's.

        Raises:
            ConfigError: Something is wrong with them.
        """
        unknown = sorted((sections or {}).keys() - set(_RELOADED))
        if unknown:
            expected = ", ".join(_RELOADED)
            raise ConfigError([f"{_NAME}.{key}: expected one of the sections {expected}" for key in unknown])
        document = escaped({**self.document, **(sections or {})})
        try:
            return load_config_content(
                json.dumps(document).encode(), name=_NAME, folder=self.folder, environment=_NO_VARIABLES
            )
        except ConfigError as error:
            # It is one line of JSON.
            raise ConfigError([_LINE.sub(f"{_NAME}: ", problem, count=1) for problem in error.problems]) from None


def _not_here(config: ServePruneConfig) -> list[str]:
    server, problems = config.server, []
    if server.tls is not None:
        problems.append("server.tls: Ray Serve's proxies listen, not serveprune; encrypt before them")
    if server.admin is not None:
        problems.append("server.admin: not served under Ray Serve; its own API and `user_config` take its place")
    if server.tracing is not None:
        problems.append("server.tracing: spans are not made under Ray Serve; leave it out")
    if server.logs.access is not None:
        problems.append("server.logs.access: Ray Serve has a log of requests of its own; leave it out")
    if server.processes != 1:
        problems.append("server.processes: expected 1 under Ray Serve, which starts processes itself")
    if config.repository.mode != "none":
        problems.append("repository.mode: expected none under Ray Serve; name the models under `models`")
    return problems
