"""Models of a folder that come and go beside those of the config file."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from serveprune.config.model import DENSE, ModelEntry
from serveprune.config.problem import suggestion
from serveprune.config.root import ServePruneConfig
from serveprune.errors import ConfigError, FailedPrecondition, Internal, NotFound, ServePruneError, Unavailable
from serveprune.preflight import check_datasets, check_packages
from serveprune.repository.model_folder import FolderModel, ModelFolder, expect_name
from serveprune.server import Contents

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.5
"""How often whoever waits for a model looks whether it is to wait on."""

_NOT_LOADED = "not loaded"
_STOPPING = "the server is shutting down"


Processes = Sequence[list[dict[str, Any]] | None]
"""How the tiers of all models stand in each process, as `ControlPlane.all_tiers` says it; ``None``: not said yet."""


class Served(Protocol):
    """The server whose models they are."""

    def apply(self, config: ServePruneConfig, *, contents: Contents) -> None:
        """Serve what a config says; see `Server.apply`."""
        ...

    def wait_for(self, condition: Callable[[Processes], bool], timeout_seconds: float) -> bool:
        """Wait until the tiers of all models stand so, given those of each process; return whether they do.

        One that has not yet said how they stand since the last change is ``None``.
        """
        ...


@dataclass(slots=True)
class _Flight:
    """A load or an unload that has begun.

    Attributes:
        superseded: Another one is to follow, for which this one is not worth waiting.
    """

    action: Literal["load", "unload"]
    ended: "Future[None]" = field(default_factory=Future)
    superseded: threading.Event = field(default_factory=threading.Event)


class ModelRepository:
    """Holds which models of the folder are served, and has the server serve them beside those of the config file.

    A load that fails leaves what was there. Thread-safe: what concerns one model happens one after the other, and what
    is applied to the server too.
    """

    def __init__(self, config: ServePruneConfig) -> None:
        """Read what is served from the start; nothing runs yet.

        Args:
            config: Of the file.

        Raises:
            ConfigError: A model that is to be loaded at the start cannot be.
        """
        self.settings = self._settings = config.repository
        self.folder = ModelFolder(self._settings.path)
        self._file = config
        self._held: dict[str, FolderModel] = {}
        self._failures: dict[str, tuple[str, str]] = {}
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._server: Served | None = None
        problems = [
            f"repository.load_at_start: {problem}" for problem in self._read_first(self._settings.load_at_start)
        ]
        if problems:
            raise ConfigError(problems)
        if self._settings.mode == "poll":
            for problem in self._read_first(self._whole()):
                _log.error("model repository: %s", problem)
        self._warn_of_absent()

    def _read_first(self, names: Iterable[str]) -> list[str]:
        """Read what is served from the start, and return what is wrong with it."""
        problems = []
        for name in names:
            try:
                found = self.folder.read(name)
                self._judge(name, found.entry, self._file)
                self._held[name] = found
            except ServePruneError as error:
                problems.append(error.message)
        return problems

    def _whole(self) -> Iterator[str]:
        """Yield what is in the folder and was written some time ago."""
        try:
            names = self.folder.names()
        except FailedPrecondition:
            return  # told at every look
        for name in names:
            try:
                content = self.folder.look(name)
            except ServePruneError:
                continue  # likewise
            if content.is_whole(seen=None, now=time.time(), settle_seconds=self._settings.poll_seconds):
                yield name

    @property
    def config(self) -> ServePruneConfig:
        """What is to be served: the models of the file and of the folder."""
        entries = {name: model.entry for name, model in dict(self._held).items()}
        return self._file.model_copy(update={"models": {**self._file.models, **entries}})

    @property
    def contents(self) -> Contents:
        """What the files of the folder's models were like when they were read."""
        return {
            (name, version): content
            for name, model in dict(self._held).items()
            for version, content in model.contents.items()
        }

    def attach(self, server: Served) -> None:
        """Take a server that serves `config`; from now on it can be changed."""
        self._server = server

    def stop(self) -> None:
        """Begin nothing more, and wait for nothing more; idempotent."""
        self._stopped.set()

    def apply(self, file: ServePruneConfig) -> None:
        """Have the models of a changed config file served, and those of the folder as before.

        Raises:
            ConfigError: They do not go together.
        """
        with self._lock:
            problems: list[str] = []
            for name, model in self._held.items():
                try:
                    self._judge(name, model.entry, file)
                except ConfigError as error:
                    problems += (
                        f"{problem} (a model that is loaded from the repository)" for problem in error.problems
                    )
            if problems:
                raise ConfigError(problems)
            former, self._file = self._file, file
            try:
                self._apply()
            except BaseException:
                self._file = former
                raise
            # What could not be loaded may go with this file.
            self._failures.clear()
        self._warn_of_absent()

    def load(self, name: str) -> "Future[None]":
        """See `LoadableModels.load`."""
        self._expect_explicit("loaded")
        expect_name(name)
        return self.begin("load", name)

    def unload(self, name: str) -> "Future[None]":
        """See `LoadableModels.unload`."""
        self._expect_explicit("unloaded")
        expect_name(name)
        return self.begin("unload", name)

    def unloaded(self) -> Mapping[str, str]:
        """See `LoadableModels.unloaded`."""
        try:
            names = self.folder.names()
        except FailedPrecondition as error:
            _log.error("%s", error.message)
            names = []
        served, failures = self.config.models, dict(self._failures)
        return {name: failures[name][1] if name in failures else _NOT_LOADED for name in names if name not in served}

    def held(self) -> dict[str, FolderModel]:
        """Return the models of the folder that are served, or on the way to it."""
        with self._lock:
            return dict(self._held)

    def failure(self, name: str) -> str | None:
        """Return what the files of a model were like when it could not be loaded, if that was the last attempt."""
        failure = self._failures.get(name)
        return failure[0] if failure is not None else None

    def begin(self, action: Literal["load", "unload"], name: str) -> "Future[None]":
        """Begin to load or unload a model, unless that is on its way already."""
        with self._lock:
            if self._stopped.is_set():
                raise Unavailable(_STOPPING)
            former = self._flights.get(name)
            if former is not None and former.action == action:
                return former.ended
            if former is not None:
                former.superseded.set()
            flight = self._flights[name] = _Flight(action)
            # Nobody who shares it may cancel it for the others.
            flight.ended.set_running_or_notify_cancel()
        threading.Thread(target=self._fly, args=(flight, name, former), name=f"{action}-{name}", daemon=True).start()
        return flight.ended

    def _fly(self, flight: _Flight, name: str, former: _Flight | None) -> None:
        error: ServePruneError | None = None
        try:
            if former is not None:
                former.ended.exception()
            if flight.action == "load":
                self._load(name, flight)
            else:
                self._unload(name)
        except ServePruneError as raised:
            error = raised.without_frames()
            _log.warning("%s of %s: %s", flight.action, name, error.message)
        except Exception:  # whatever it is, those who wait are told
            _log.exception("%s of %s failed", flight.action, name)
            error = Internal("internal error; see the server's log")
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]
        if error is None:
            flight.ended.set_result(None)
        else:
            flight.ended.set_exception(error)

    def _load(self, name: str, flight: _Flight) -> None:
        found: FolderModel | None = None
        try:
            with self._lock:
                file = self._file
            self._judge_name(name, file)
            found = self.folder.read(name)
            self._judge(name, found.entry, file)
            before = self._put(name, found)
            reasons = self._wait(name, found, flight)
            if reasons:
                self._take_back(name, found, before)
                former = "; what was loaded before goes on serving" if before is not None else ""
                raise FailedPrecondition(f"model {name} cannot be loaded: {reasons}{former}")
        except ServePruneError as error:
            token = found.token if found is not None else self._token(name)
            # Nothing is kept of names that clients made up.
            if token and not flight.superseded.is_set() and not isinstance(error, Unavailable):
                self._failures[name] = (token, error.message)
            raise
        self._failures.pop(name, None)
        _log.info("%s: loaded from the model repository", name)

    def _put(self, name: str, found: FolderModel) -> FolderModel | None:
        """Have a model served that was read, and return what was served until then."""
        with self._lock:
            # The config file may have changed since it was judged.
            self._judge_name(name, self._file)
            before = self._held.get(name)
            if before != found:
                self._held[name] = found
                try:
                    self._apply()
                except BaseException:
                    self._restore(name, before)
                    raise
            return before

    def _take_back(self, name: str, found: FolderModel, before: FolderModel | None) -> None:
        with self._lock:
            if self._held.get(name) == found:
                # What was there already, and fails, is gone by that: it serves nothing.
                self._restore(name, before if before != found else None)
                self._apply()

    def _restore(self, name: str, before: FolderModel | None) -> None:
        if before is None:
            self._held.pop(name, None)
        else:
            self._held[name] = before

    def _unload(self, name: str) -> None:
        with self._lock:
            self._judge_name(name, self._file)
            if name not in self._held:
                loaded = ", ".join(sorted(self._held)) or "none"
                raise NotFound(f"no model named {name!r} is loaded from the repository; loaded: {loaded}")
            before = self._held.pop(name)
            try:
                self._apply()
            except BaseException:
                self._held[name] = before
                raise
            self._failures.pop(name, None)
        server = self._attached()
        while not server.wait_for(lambda processes: is_gone(processes, name), _PATIENCE_SECONDS):
            if self._stopped.is_set():
                raise Unavailable(_STOPPING)
        _log.info("%s: unloaded", name)

    def _wait(self, name: str, found: FolderModel, flight: _Flight) -> str:
        """Wait until the dense tier of each version that is to be served answers; if one never will, say why."""
        versions, server = list(found.entry.served), self._attached()
        said: list[str | None] = [None]

        def is_decided(processes: Processes) -> bool:
            outcomes = [outcome(standings or [], name, versions) for standings in processes]
            said[0] = next((each for each in outcomes if each), None if None in outcomes or not outcomes else "")
            return said[0] is not None

        while not server.wait_for(is_decided, _PATIENCE_SECONDS):
            if self._stopped.is_set():
                raise Unavailable(_STOPPING)
            if flight.superseded.is_set():
                raise FailedPrecondition(f"model {name} was unloaded before it was ready")
        return said[0] or ""

    def _apply(self) -> None:
        self._attached().apply(self.config, contents=self.contents)

    def _attached(self) -> Served:
        if self._server is None:
            raise Unavailable("the server is starting", retry_after_seconds=1.0)
        return self._server

    def _token(self, name: str) -> str:
        """Return what the files of a model are like; nothing if that cannot be said."""
        try:
            return self.folder.look(name).token
        except ServePruneError:
            return ""

    def _expect_explicit(self, done: str) -> None:
        if self._settings.mode != "explicit":
            raise FailedPrecondition(
                f"models are {done} by request only with repository.mode explicit; with {self._settings.mode} what is "
                "in the folder is served"
            )

    def _warn_of_absent(self) -> None:
        """Tell of deployments of models that are nowhere: the folder may have them later, or a name is misspelt."""
        try:
            known = {*self._file.models, *self.folder.names()}
        except FailedPrecondition:
            return  # told elsewhere
        for name in self._file.deployments:
            if name not in known:
                _log.warning(
                    "deployments.%s: neither the config file nor the model repository has a model of this name%s",
                    name,
                    suggestion(name, known),
                )

    def _judge_name(self, name: str, file: ServePruneConfig) -> None:
        if name in file.models:
            raise FailedPrecondition(
                f"model {name} is one of the config file, which says how it is served; a model of the repository needs "
                "another name"
            )

    def _judge(self, name: str, entry: ModelEntry, file: ServePruneConfig) -> None:
        """Judge whether a model of the folder goes with a config file.

        Raises:
            FailedPrecondition: The file has a model of that name.
            ConfigError: All else that is wrong with it.
        """
        self._judge_name(name, file)
        known = ", ".join(file.profiles) or "none"
        problems = [
            f"models.{name}.tiers: expected {DENSE} or the name of a profile of the config file, got {tier!r}; "
            f"profiles: {known}"
            for tier in entry.tiers
            if tier != DENSE and file.profile(tier) is None
        ]
        tiers = ", ".join(entry.tiers)
        problems += (
            f"deployments.{name}.{key}: expected a tier of {name}, got {tier!r}; tiers: {tiers}"
            for key, tier in file.deployment(name).named_tiers.items()
            if tier not in entry.tiers
        )
        if not problems:
            alone = file.model_copy(update={"models": {name: entry}})
            problems = [*check_packages(alone), *check_datasets(alone)]
        if problems:
            raise ConfigError(problems)


def is_gone(processes: Processes, name: str) -> bool:
    """Tell whether no process serves a model any more."""
    return all(
        standings is not None and all(standing["name"] != name for standing in standings) for standings in processes
    )


def outcome(standings: list[dict[str, Any]], name: str, versions: list[str]) -> str | None:
    """Return how the versions of a model came out.

    Args:
        standings: Of all models, as `ControlPlane.all_tiers` describes them.
        name: Of the model.
        versions: That are to answer.

    Returns:
        ``None`` while it is not decided, nothing if the dense tier of each answers, else why one never will.
    """
    undecided = False
    for version in versions:
        standing = next((one for one in standings if (one["name"], one["version"]) == (name, version)), None)
        if standing is None:
            undecided = True
            continue
        successor = standing["successor"]
        is_replaced = successor is not None and successor["version"] == version
        dense = (successor if is_replaced else standing)["tiers"][0]
        renewal = None if is_replaced else dense["renewal"]
        state = (renewal or dense)["state"]
        if state in ("failed", "refused"):
            return "; ".join((renewal or dense)["reasons"])
        undecided |= is_replaced or state != "ready"
    return None if undecided else ""
