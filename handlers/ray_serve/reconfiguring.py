import logging
from collections.abc import Mapping
from typing import Any

from serveprune.config.root import ServePruneConfig
from serveprune.errors import ConfigError
from serveprune.handlers.ray_serve.accepted_sections import AcceptedSections
from serveprune.handlers.ray_serve.config_source import ConfigSource
from serveprune.handlers.ray_serve.packing import Identity
from serveprune.reloading.config_file import ConfigFile
from serveprune.reloading.reloader import Reload, Reloader, ReloadOutcome
from serveprune.server import Server

_log = logging.getLogger(__name__)


class Reconfiguring:
    """Takes sections of `serveprune.yaml` that arrive as `user_config`: applied whole, or refused. For one thread.

    Attributes:
        has_started: The server serves by now, so that what is refused leaves it as it is.
    """

    def __init__(
        self,
        server: Server,
        source: ConfigSource,
        accepted: AcceptedSections,
        *,
        deployed: Mapping[Identity, str],
    ) -> None:
        """Take what the server serves for what `serveprune.yaml` says.

        Args:
            server: Serves the config of the source.
            source: What is said beside the sections.
            accepted: Where those that were applied are kept.
            deployed: The deployment of each variant that has one; others cannot be served before the next deploy.
        """
        self._source, self._accepted, self._deployed = source, accepted, deployed
        self._sections: Mapping[str, Any] = {}
        self.has_started = False
        self._reloader = Reloader(
            ConfigFile(source.folder), server.config, read=self._read, apply=server.apply, metrics=server.metrics
        )

    def reconfigure(self, sections: object) -> None:
        """Apply sections, or go on with those that were applied last, and say so in the log and by a metric.

        To Ray an exception here is a replica to be replaced by one that knows the refused sections only.

        Raises:
            ConfigError: They are refused, and none were ever applied: the application does not start.
        """
        reload = self._apply(sections)
        if reload.outcome is not ReloadOutcome.REJECTED:
            self._accepted.write(self._sections)
            return
        last = self._accepted.read()
        if last is None and not self.has_started:
            raise ConfigError(reload.problems)
        _log.error("user_config is refused; what was applied last stays: %s", "; ".join(reload.problems))
        if last is None:
            self._accepted.write(self._sections)
        elif last != self._sections:
            # A replica that was started just now.
            if self._apply(last).outcome is ReloadOutcome.REJECTED:
                _log.error("what was applied last cannot be applied any more; serveprune.yaml as it stands is served")
            self._reloader.note(reload)

    def _apply(self, sections: object) -> Reload:
        former, self._sections = self._sections, _mapping(sections)
        reload = self._reloader.reload()
        if reload.outcome is ReloadOutcome.REJECTED:
            self._sections = former
        return reload

    def _read(self) -> ServePruneConfig:
        config = self._source.config(self._sections)
        missing = [
            f"user_config: models.{name}.tiers: {tier} of version {version} has no deployment: deploy the application "
            "again with a serveprune.yaml that has it"
            for (name, version), model in config.served().items()
            for tier in model.tiers
            if (name, version, tier) not in self._deployed
        ]
        if missing:
            raise ConfigError(missing)
        return config


def _mapping(sections: object) -> Mapping[str, Any]:
    # What is no mapping is refused as a section that there is not.
    return sections if isinstance(sections, Mapping) else {repr(sections): None}
