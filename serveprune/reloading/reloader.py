"""Keeps a server at what its config file says."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from serveprune.config.change import Change, ConfigChanges
from serveprune.config.changes import config_changes
from serveprune.config.differences import DifferenceKind
from serveprune.config.root import ServePruneConfig
from serveprune.config.value_text import changed_texts, value_text
from serveprune.errors import Code, ConfigError, ServePruneError, Unavailable
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.observability.tracing_protocol import Tracing
from serveprune.preflight import check_datasets, check_packages
from serveprune.reloading.config_file import ConfigFile

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_NOTHING = ConfigChanges(())


class ReloadOutcome(StrEnum):
    """How a reload ended."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Reload:
    """One attempt to serve what the file says.

    Attributes:
        ended: Seconds since the epoch.
        changes: What differs from the config that was served until then; none if the file cannot be read.
        problems: Why it was rejected, one line each; the config that was served goes on.
        code: Of what kind they are; ``None`` if there are none.
    """

    outcome: ReloadOutcome
    ended: float
    changes: ConfigChanges = _NOTHING
    problems: tuple[str, ...] = ()
    code: Code | None = None


class Reloader:
    """Reads the config file when it changes, or when it is told to, and applies it whole or not at all.

    Thread-safe.
    """

    def __init__(
        self,
        file: ConfigFile,
        config: ServePruneConfig,
        *,
        read: Callable[[], ServePruneConfig],
        apply: Callable[[ServePruneConfig], None],
        metrics: Metrics,
        is_asked: Callable[[], bool] = lambda: False,
        on_reload: Callable[[Reload, ServePruneConfig], None] = lambda done, config: None,
        clock: Callable[[], float] = time.time,
        tracing: Tracing | None = None,
    ) -> None:
        """Take what is served for what the file says; nothing runs yet.

        Args:
            file: Watched; as it was before the config was read from it.
            config: That is served.
            read: Reads the file, and what it is to be taken with, and checks it.
            apply: Has the server serve a config that was checked.
            metrics: Shows whether it went well.
            is_asked: Tells, once, that the file is to be read again though it may not have changed.
            on_reload: Told how each attempt ended, the first one included, and which config is served since.
            clock: Seconds since the epoch.
            tracing: Makes spans.
        """
        self._file = file
        self.config = config
        self._read = read
        self._apply = apply
        self._metrics = metrics
        self._is_asked = is_asked
        self._on_reload = on_reload
        self._clock = clock
        self._tracing = tracing
        self.last = Reload(ReloadOutcome.APPLIED, clock())
        self._stopped = threading.Event()
        self._reloading = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="config", daemon=True)
        self._show(self.last)

    def start(self) -> None:
        """Begin to watch the file."""
        self._thread.start()

    def stop(self) -> None:
        """Watch it no longer, and apply nothing any more; idempotent. What is being applied is applied first."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._reloading:
            pass

    def reload(self) -> Reload:
        """Read the file again, and serve what it says if nothing is wrong with it.

        Raises:
            Unavailable: The server is shutting down.
        """
        with self._reloading:
            if self._stopped.is_set():
                raise Unavailable("the server is shutting down")
            return self._reload()

    def _reload(self) -> Reload:
        self._file.mark_read()
        done = self._attempt() if self._tracing is None else self._traced_attempt(self._tracing)
        self.note(done)
        return done

    def note(self, done: Reload) -> None:
        """Show how it went; a host may have gone back to what it served before."""
        self.last = done
        self._show(done)

    def _traced_attempt(self, tracing: Tracing) -> Reload:
        with tracing.span("config reload", {}) as span:
            done = self._attempt()
            span.note(
                {"serveprune.reload.outcome": done.outcome, "serveprune.reload.changes": len(done.changes.changes)}
            )
            if done.outcome is ReloadOutcome.REJECTED:
                span.failed("; ".join(done.problems))
        return done

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            has_changed = self._file.has_changed()
            if self._is_asked() or has_changed:
                with self._reloading:
                    self._reload()

    def _attempt(self) -> Reload:
        found = _NOTHING
        try:
            config = self._read()
            found = config_changes(self.config, config)
            self._check(config, found)
            # Also where nothing has changed: what failed may go well now.
            self._apply(config)
            self.config = config
        except ConfigError as error:
            # A server in another state could take it on.
            code = Code.FAILED_PRECONDITION if found.needing_restart else error.code
            return self._rejected(found, tuple(error.problems), code)
        except ServePruneError as error:
            return self._rejected(found, (error.message,), error.code)
        except Exception:  # the thread must go on, and the server as it is
            _log.exception("unexpected failure while the config was read again")
            return self._rejected(found, ("unexpected failure; see the server's log",), Code.INTERNAL)
        if not found:
            _log.info("config read again: nothing has changed; what failed is tried again")
            return Reload(ReloadOutcome.UNCHANGED, self._clock())
        for change in found.changes:
            _log.info("config: %s", change_in_words(change))
        return Reload(ReloadOutcome.APPLIED, self._clock(), found)

    def _check(self, config: ServePruneConfig, found: ConfigChanges) -> None:
        expected = "expected as it was while the server runs; restart it to apply this"
        if found.needing_restart:
            raise ConfigError([f"{change_in_words(change)}: {expected}" for change in found.needing_restart])
        problems = [*check_packages(config), *check_datasets(config)] if found else []
        if problems:
            raise ConfigError(problems)

    def _rejected(self, found: ConfigChanges, problems: tuple[str, ...], code: Code) -> Reload:
        for problem in problems:
            _log.error("config not applied: %s", problem)
        return Reload(ReloadOutcome.REJECTED, self._clock(), found, problems, code)

    def _show(self, done: Reload) -> None:
        is_good = done.outcome is not ReloadOutcome.REJECTED
        self._metrics.gauge(series.CONFIG_RELOAD_SUCCESSFUL).set(is_good)
        if is_good:
            self._metrics.gauge(series.CONFIG_RELOAD_SECONDS).set(done.ended)
        self._on_reload(done, self.config)


def change_in_words(change: Change) -> str:
    """Return where something changed, and from what to what, as one line."""
    path = ".".join(map(str, change.path))
    match change.kind:
        case DifferenceKind.ADDED:
            return f"{path}: added {value_text(change.new)}"
        case DifferenceKind.REMOVED:
            return f"{path}: removed {value_text(change.old)}"
        case DifferenceKind.CHANGED:
            old, new = changed_texts(change.old, change.new)
            return f"{path}: {old} -> {new}"
