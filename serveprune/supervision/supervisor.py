"""The process that serves nothing itself: it starts those that do, and keeps them running."""

import logging
import selectors
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector

from serveprune.artifacts.builder import ArtifactBuilder, BuildRequest, BuildResult
from serveprune.artifacts.opening import open_store
from serveprune.artifacts.store import StoreEvent
from serveprune.config.root import ServePruneConfig
from serveprune.errors import Code, FailedPrecondition, Internal, ServePruneError
from serveprune.frontends.http.operator_call import AdmittedOperators, AskOperators
from serveprune.frontends.metrics_endpoint import MetricsEndpoint
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.observability.process_totals import ProcessTotals
from serveprune.observability.shared_values import MergedCollector, forget_gauges, values_shared
from serveprune.observability.tracing_protocol import Tracing, close_in_time
from serveprune.repository.model_repository import Processes
from serveprune.rollouts.driver import RolloutDriver
from serveprune.rollouts.rollouts import Rollouts
from serveprune.server import Contents, Endpoints
from serveprune.serving.loadable_models import FixedModels, LoadableModels
from serveprune.serving.report import count_build
from serveprune.supervision.answers import Answers
from serveprune.supervision.division import config_of_one_process
from serveprune.supervision.messages import (
    Apply,
    Begin,
    BuildAsked,
    ChangeAsked,
    Channel,
    CheckAsked,
    Checked,
    Listen,
    Listening,
    Message,
    NotStarted,
    Observed,
    OperatorAsked,
    Spread,
    Standing,
    Told,
)
from serveprune.supervision.observations import Observations
from serveprune.supervision.reserved_port import ReservedPort, reserve_port
from serveprune.supervision.restart_policy import RestartPolicy
from serveprune.supervision.series_folder import series_folder
from serveprune.supervision.serving_child import ServingChild
from serveprune.supervision.shared_builds import SharedBuilds

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_TEST_SECONDS = 600.0
_TELL_SECONDS = 1.0
_TOLD_CHANGES = 20
_STOP_MARGIN_SECONDS = 15.0
"""Beyond the drain, for what a process that stops does after it; then it is killed."""
_KILL_SECONDS = 5.0
_OWN_NAME = "supervisor"
_POLICY = RestartPolicy()
_FIXED = FixedModels()


class _Place:
    """One of the serving processes, in the course of time: who has its place, and when it is to be filled again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.child: ServingChild | None = None
        self.early_deaths = 0
        self.start_at = 0.0


class Supervisor:
    """N serving processes that look like one server: same ports, one build for all, one page of metrics.

    One thread starts processes, reads what they say, and waits for their ends. It lives as long as they do: the
    kernel tells a child that its parent died when the thread dies that started it.

    Attributes:
        rollouts: Of all processes; there once it has started.
    """

    def __init__(
        self,
        config: ServePruneConfig,
        *,
        command: Sequence[str],
        make_builder: Callable[[Callable[[StoreEvent], None]], ArtifactBuilder],
        policy: RestartPolicy = _POLICY,
        loadable: LoadableModels = _FIXED,
        contents: Contents = MappingProxyType({}),
        tracing: Tracing | None = None,
    ) -> None:
        """Describe a server; nothing runs yet.

        Args:
            config: What to serve, and by how many processes.
            command: Runs one of them; see `ServingChild`.
            make_builder: Returns what builds for all, given whom it is to tell what happens in a shared store.
            policy: When one that ended is replaced.
            loadable: Loads and unloads models when a client of any process asks for it.
            contents: See `Server`.
            tracing: Makes spans of what is not done in serving processes; closed when the server stops.
        """
        self._config = config
        self._command = command
        self._make_builder = make_builder
        self._policy = policy
        self._loadable = loadable
        self._contents = _listed(contents)
        self._tracing = tracing
        self._number = 0
        self._places = [_Place(str(number)) for number in range(config.server.processes)]
        self._totals = ProcessTotals()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._kill = threading.Event()
        self._failure: ServePruneError | None = None
        self._checked: list[str] | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervision", daemon=True)
        self._held = ExitStack()
        self._ports: dict[str, ReservedPort] = {}
        self._metrics: Metrics | None = None
        self._builds: SharedBuilds | None = None
        self._answers: Answers | None = None
        self._folder = Path()
        self._observations = Observations()
        self.rollouts: Rollouts | None = None
        self._config_document: dict[str, Any] | None = None
        self._operators = AdmittedOperators()
        self._told_at = 0.0
        self._driver: RolloutDriver | None = None

    def start(self) -> Endpoints:
        """Start all processes, and return once one of them listens; the others follow when they can answer.

        Raises:
            FailedPrecondition: An address cannot be bound; nothing is left running.
            Internal: Processes ended again and again before one listened.
        """
        try:
            endpoints = self._prepare()
            self._thread.start()
            assert self._driver is not None
            self._driver.start()
            with self._changed:
                self._changed.wait_for(lambda: self._failure is not None or self._listens())
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.stop(drain_seconds=0.0)
            raise
        return endpoints

    def apply(self, config: ServePruneConfig, *, contents: Contents = MappingProxyType({})) -> None:
        """Have all processes serve what another config says; see `Server.apply`."""
        assert self._builds is not None
        with self._changed:
            self._config = config.model_copy(update={"server": self._config.server})
            self._contents = _listed(contents)
            self._number += 1
            applied = Apply(config=config_of_one_process(self._config), contents=self._contents, number=self._number)
            for child in self._children():
                child.standing = None
                # What it spreads by may begin anew.
                child.spread.clear()
                child.channel.send(applied)
            self._deploy()
        self._builds.cancel_unless(lambda request: request.is_wanted_by(config, contents=contents))

    def _deploy(self) -> None:
        """Have the rollouts of the config."""
        assert self.rollouts is not None
        deployments = {name: self._config.deployment(name) for name in self._config.models}
        self._observations.deploy(deployments)
        self.rollouts.deploy(deployments)

    def _spread(self, model: str, percent: int, artifact: str | None) -> None:
        """Tell all processes how to spread the requests of a model; one that is new needs it, too."""
        with self._changed:
            order = Spread(model=model, percent=percent, artifact=artifact)
            for child in self._children():
                if child.spread.get(model) != order:
                    child.spread[model] = order
                    child.channel.send(order)

    def look_now(self) -> None:
        """See `Server.look_now`."""
        if self._driver is not None:
            self._driver.look_now()

    def tell_config(self, document: dict[str, Any]) -> None:
        """Have the page show what became of the config file; see `Overview.tell_config`."""
        self._config_document = document

    def admit_operators(self, ask: AskOperators) -> None:
        """Have calls to the admin API answered that come through the page of any process."""
        self._operators.admit(ask)

    def _tell(self) -> None:
        """Tell all processes, once a second, what has changed of what only this one knows."""
        if not self._config.server.ui or time.monotonic() - self._told_at < _TELL_SECONDS:
            return
        self._told_at = time.monotonic()
        assert self.rollouts is not None
        told = Told(
            rollouts=tuple(self.rollouts.status()),
            changes=tuple(self.rollouts.changes()[-_TOLD_CHANGES:]),
            config=self._config_document,
        )
        for child in self._children():
            if child.told != told and child.channel.send(told):
                child.told = told

    def stop(self, *, drain_seconds: float | None = None) -> bool:
        """Have all processes drain at the same time, end builds, and release everything; idempotent.

        Returns:
            True: what still runs after its patience is killed, so nothing does.
        """
        drain = self._config.server.drain_seconds if drain_seconds is None else drain_seconds
        if self._builds is not None:
            self._builds.cancel()
        if self._driver is not None:
            self._driver.stop()
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(drain + _STOP_MARGIN_SECONDS)
            if self._thread.is_alive():
                _log.error("serving processes did not stop within %.0f s; killed", drain + _STOP_MARGIN_SECONDS)
                self._kill.set()
                self._thread.join(_KILL_SECONDS)
        if self._builds is not None:
            self._builds.close(timeout_seconds=_STOP_MARGIN_SECONDS)
        close_in_time(self._tracing, left_seconds=drain)
        self._held.close()
        return True

    @property
    def metrics(self) -> Metrics:
        """Its own series; there once it has started."""
        assert self._metrics is not None
        return self._metrics

    @property
    def failure(self) -> ServePruneError | None:
        """Why the server cannot go on, if so; then it is to be stopped."""
        return self._failure

    def wait_settled(self, timeout_seconds: float) -> bool:
        """Wait until every variant serves, was refused or failed, in every process; return whether that happened."""
        with self._changed:
            return self._changed.wait_for(self._all_settled, timeout_seconds)

    def wait_for(self, condition: Callable[[Processes], bool], timeout_seconds: float) -> bool:
        """Wait until the tiers stand so, given those of each process that clients may reach; see `ModelRepository`."""

        def holds() -> bool:
            standings = [child.standing for child in self._children() if child.may_listen]
            return condition([None if standing is None else list(standing.models) for standing in standings])

        with self._changed:
            return self._changed.wait_for(holds, timeout_seconds)

    def tiers(self) -> list[dict[str, Any]]:
        """Return how the tiers of all models stand in the first process that said so, ready for JSON."""
        with self._changed:
            standings = [child.standing for child in self._children() if child.standing is not None]
        return list(standings[0].models) if standings else []

    def self_test(self, endpoints: Endpoints) -> list[str]:
        """Have each process send real requests to every tier, which any of them may answer; return what was wrong."""
        problems: list[str] = []
        for child in self._children():
            answer = self._test_of(child, endpoints)
            problems += [f"process {child.name} did not finish its test"] if answer is None else answer
        return list(dict.fromkeys(problems))

    def _test_of(self, child: ServingChild, endpoints: Endpoints) -> list[str] | None:
        with self._changed:
            self._checked = None
            child.channel.send(CheckAsked(http=endpoints.http, grpc=endpoints.grpc, metrics=endpoints.metrics))
            self._changed.wait_for(
                lambda: self._checked is not None or self._failure is not None or child.exit_code is not None,
                _TEST_SECONDS,
            )
            return self._checked

    def _prepare(self) -> Endpoints:
        """Take the ports and all else that processes share."""
        server, held = self._config.server, self._held
        if server.processes > server.executors:
            _log.warning(
                "server.processes (%d) is above server.executors (%d): each process computes with one all the same",
                server.processes, server.executors,
            )  # fmt: skip
        for name, address in (("http", server.http), ("grpc", server.grpc)):
            self._ports[name] = port = reserve_port(address, setting=f"server.{name}")
            held.callback(port.release)
        self._folder = held.enter_context(series_folder())
        held.enter_context(values_shared(self._folder, process=_OWN_NAME))
        self._metrics = Metrics()
        self.rollouts = Rollouts(self._config.store.folder, self._metrics, tracing=self._tracing)
        self._driver = RolloutDriver(self.rollouts, observe=self._observations.take, obey=self._spread)
        self._deploy()
        store_events = {event: self._metrics.counter(series.STORE_EVENTS, event) for event in StoreEvent}
        builder = self._make_builder(lambda event: store_events[event].inc())
        self._builds = SharedBuilds(builder, on_ended=self._count_build)
        self._answers = Answers(self._builds, self._loadable, ask_operators=self._operators.ask)
        endpoint = MetricsEndpoint(self._registry())
        held.callback(endpoint.stop)
        shown_at = endpoint.start(server.metrics)
        real = {name: port.address for name, port in self._ports.items()}
        self._config = self._config.model_copy(update={"server": server.model_copy(update=real)})
        return Endpoints(real["http"], real["grpc"], shown_at)

    def _registry(self) -> CollectorRegistry:
        store = open_store(self._config.store)
        registry = CollectorRegistry()
        registry.register(MergedCollector(self._folder, gauges={series.STORE_BYTES: store.size_bytes}))
        registry.register(self._totals)
        PlatformCollector(registry=registry)
        return registry

    def _children(self) -> list[ServingChild]:
        return [place.child for place in self._places if place.child is not None]

    def _listens(self) -> bool:
        return any(child.listening is not None for child in self._children())

    def _all_settled(self) -> bool:
        listening = [child for child in self._children() if child.listening is not None]
        settled = [child for child in listening if child.standing is not None and child.standing.settled]
        return len(settled) == len(self._places)

    def _supervise(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                while not self._stopping.is_set():
                    self._fill_places(selector)
                    self._look(selector)
                    self._let_listen()
                    self._tell()
                for child in self._children():
                    child.send_signal(signal.SIGTERM)
                while self._children():
                    if self._kill.is_set():
                        for child in self._children():
                            child.send_signal(signal.SIGKILL)
                    self._look(selector)
        except Exception:  # a thread's exception has no other way out
            _log.exception("the supervision failed")
            self._fail(Internal("the supervision of the serving processes failed; see the server's log"))

    def _let_listen(self) -> None:
        """Have one process listen at once, and each other one when all that listen, and it, can answer.

        So what one of them says of readiness holds for every connection, and one that is started again gets none
        before it can answer.
        """
        children = self._children()
        for child in children:
            concerned = [child, *(other for other in children if other.may_listen)]
            alone = concerned == [child]
            if not child.may_listen and (alone or all(one.answers_since is not None for one in concerned)):
                child.may_listen = True
                child.channel.send(Listen())

    def _fill_places(self, selector: selectors.BaseSelector) -> None:
        for place in self._places:
            if place.child is not None or time.monotonic() < place.start_at or self._failure is not None:
                continue
            try:
                child = ServingChild(self._command, name=place.name)
            except OSError as error:  # no memory or descriptors for it now; the others go on
                self._plan_start(place, lived_seconds=0.0, end=f"cannot be started: {error}")
                continue
            self._totals.add(child.pid)
            selector.register(child.channel, selectors.EVENT_READ, place)
            selector.register(child.pidfd, selectors.EVENT_READ, place)
            with self._changed:
                place.child = child
                config = config_of_one_process(self._config)
                child.channel.send(
                    Begin(
                        config=config,
                        process=place.name,
                        series_folder=self._folder,
                        contents=self._contents,
                        number=self._number,
                    )
                )

    def _look(self, selector: selectors.BaseSelector) -> None:
        """Read what processes said, and take note of those that ended."""
        for key, _ in selector.select(_POLL_SECONDS):
            place: _Place = key.data
            child = place.child
            if child is None:
                continue  # it ended, and this is the other of its two descriptors
            if isinstance(key.fileobj, Channel):
                self._read(child, selector)
            elif child.reap():
                # What it said last may still wait to be read.
                while child.channel.fileno() in selector.get_map() and self._read(child, selector):
                    pass
                self._bury(place, child, selector)
        for child in self._children():
            if time.monotonic() > child.kill_at:
                child.send_signal(signal.SIGKILL)

    def _read(self, child: ServingChild, selector: selectors.BaseSelector) -> bool:
        messages = child.channel.receive()
        if messages is None:
            selector.unregister(child.channel)
            # It may have closed its end and live on, deaf.
            child.send_signal(signal.SIGTERM)
            child.kill_at = time.monotonic() + self._config.server.drain_seconds + _STOP_MARGIN_SECONDS
            return False
        for message in messages:
            self._take(child, message)
        return True

    def _take(self, child: ServingChild, message: Message) -> None:
        if isinstance(message, BuildAsked | ChangeAsked | OperatorAsked):
            assert self._answers is not None
            self._answers.answer(message, child.channel)
            return
        if isinstance(message, Observed):
            self._observations.add(child.name, message.models)
            return
        with self._changed:
            match message:
                case Listening():
                    child.listening = message
                case Standing() if message.number == self._number:
                    child.standing = message
                    if message.answers and child.answers_since is None:
                        child.answers_since = time.monotonic()
                case Checked():
                    self._checked = list(message.problems)
                case NotStarted() if not self._listens():
                    self._failure = self._failure or _as_error(message)
                case NotStarted():
                    child.is_hindered = True
                    _log.error("serving process %s could not start: %s", child.name, message.message)
            self._changed.notify_all()

    def _bury(self, place: _Place, child: ServingChild, selector: selectors.BaseSelector) -> None:
        """Clear up after a process that ended, and decide when its place is filled again."""
        if child.channel.fileno() in selector.get_map():
            selector.unregister(child.channel)
        selector.unregister(child.pidfd)
        child.close()
        self._totals.remove(child.pid, cpu_seconds=child.cpu_seconds)
        forget_gauges(self._folder, process=place.name)
        self._observations.forget(place.name)
        with self._changed:
            place.child = None
            self._changed.notify_all()
        if self._stopping.is_set() or self._failure is not None:
            return
        assert self._metrics is not None
        self._metrics.counter(series.PROCESS_RESTARTS).inc()
        if child.is_hindered:
            # Others serve meanwhile. A certificate that cannot be used just now must not end them.
            place.start_at = time.monotonic() + self._policy.hindered_delay_seconds
            return
        # Not since its start: one that dies of what it loads does so each time, however long loading takes.
        lived = 0.0 if child.answers_since is None else time.monotonic() - child.answers_since
        self._plan_start(place, lived_seconds=lived, end=f"(pid {child.pid}) {child.describe_end()}")

    def _plan_start(self, place: _Place, *, lived_seconds: float, end: str) -> None:
        following = self._policy.after_death(lived_seconds=lived_seconds, early_deaths=place.early_deaths)
        place.early_deaths = following.early_deaths
        if following.delay_seconds is None:
            self._fail(
                Internal(
                    f"serving process {place.name} {end}, the last of {following.early_deaths} times "
                    "in a row soon after its start; the server ends"
                )
            )
            return
        _log.error("serving process %s %s; started again in %.1f s", place.name, end, following.delay_seconds)
        place.start_at = time.monotonic() + following.delay_seconds

    def _fail(self, failure: ServePruneError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _count_build(self, request: BuildRequest, result: BuildResult) -> None:
        assert self._metrics is not None
        count_build(self._metrics, (request.model_name, request.model.version, request.tier), result)


def _listed(contents: Contents) -> tuple[tuple[str, str, str], ...]:
    return tuple((name, version, content) for (name, version), content in contents.items())


def _as_error(message: NotStarted) -> ServePruneError:
    kind = FailedPrecondition if message.code is Code.FAILED_PRECONDITION else Internal
    return kind(message.message)
