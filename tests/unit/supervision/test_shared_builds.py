import threading
from collections.abc import Callable, Iterator
from threading import Event

import pytest

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.config.model import ModelConfig
from serveprune.supervision.shared_builds import SharedBuilds

MODEL = ModelConfig.model_validate({"source": {"onnx": __file__}})


def request(tier: str = "dense", *, content: str = "") -> BuildRequest:
    return BuildRequest(model_name="boots", model=MODEL, tier=tier, content=content)


class HeldBuilder:
    """Builds when it is let go; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.started, self.let_go = Event(), Event()
        self.failure: Exception | None = None

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        self.asked.append(request.tier)
        on_progress(BuildProgress("importing", 0.5))
        self.started.set()
        while not self.let_go.wait(0.01):
            if cancelled.is_set():
                return BuildResult(BuildOutcome.FAILED, reasons=("cancelled",))
        if self.failure is not None:
            raise self.failure
        return BuildResult(BuildOutcome.BUILT, key=request.tier)


class Process:
    """Takes what it is told of a build."""

    def __init__(self, builds: SharedBuilds, tier: str = "dense", *, content: str = "") -> None:
        self.progress: list[BuildProgress] = []
        self.results: list[BuildResult] = []
        self._ended = Event()
        builds.ask(request(tier, content=content), on_progress=self.progress.append, on_result=self._take)

    def _take(self, result: BuildResult) -> None:
        self.results.append(result)
        self._ended.set()

    def result(self) -> BuildResult:
        assert self._ended.wait(30)
        return self.results[0]


@pytest.fixture
def builder() -> HeldBuilder:
    return HeldBuilder()


@pytest.fixture
def ended() -> list[tuple[str, BuildOutcome]]:
    return []


@pytest.fixture
def builds(builder: HeldBuilder, ended: list[tuple[str, BuildOutcome]]) -> Iterator[SharedBuilds]:
    shared = SharedBuilds(builder, on_ended=lambda asked, result: ended.append((asked.tier, result.outcome)))
    yield shared
    assert shared.close(timeout_seconds=30)


def test_build_is_made_once_for_all_who_ask(
    builds: SharedBuilds, builder: HeldBuilder, ended: list[tuple[str, BuildOutcome]]
) -> None:
    processes = [Process(builds) for _ in range(3)]
    assert builder.started.wait(30)
    late = Process(builds)
    assert late.progress == [BuildProgress("importing", 0.5)]
    builder.let_go.set()

    assert [process.result() for process in (*processes, late)] == [BuildResult(BuildOutcome.BUILT, key="dense")] * 4
    assert builder.asked == ["dense"]
    assert ended == [("dense", BuildOutcome.BUILT)]
    assert all(BuildProgress("importing", 0.5) in process.progress for process in processes)


def test_build_of_other_files_under_the_same_names_is_another_one(builds: SharedBuilds, builder: HeldBuilder) -> None:
    processes = [Process(builds, content=content) for content in ("before", "after", "after")]
    builder.let_go.set()
    assert all(process.result().outcome is BuildOutcome.BUILT for process in processes)
    assert builder.asked == ["dense", "dense"]


def test_builds_come_one_after_the_other(builds: SharedBuilds, builder: HeldBuilder) -> None:
    first = Process(builds)
    assert builder.started.wait(30)
    second = Process(builds, tier="int8")
    assert second.progress == [BuildProgress("waiting for another build", 0.0)]
    assert builder.asked == ["dense"]
    builder.let_go.set()

    assert (first.result().key, second.result().key) == ("dense", "int8")
    assert builder.asked == ["dense", "int8"]


def test_build_is_made_again_when_it_is_asked_for_after_its_end(builds: SharedBuilds, builder: HeldBuilder) -> None:
    builder.let_go.set()
    Process(builds).result()
    Process(builds).result()
    assert builder.asked == ["dense", "dense"]


def test_builder_that_raises_fails_its_build_alone(builds: SharedBuilds, builder: HeldBuilder) -> None:
    builder.failure = RuntimeError("a defect")
    builder.let_go.set()
    assert Process(builds).result().reasons == ("unexpected failure; see the server's log",)
    builder.failure = None
    assert Process(builds).result().outcome is BuildOutcome.BUILT


def test_cancel_ends_the_running_build_and_those_that_wait(
    builds: SharedBuilds, builder: HeldBuilder, ended: list[tuple[str, BuildOutcome]]
) -> None:
    running = Process(builds)
    assert builder.started.wait(30)
    waiting = Process(builds, tier="int8")

    builds.cancel()

    assert [process.result().reasons for process in (running, waiting)] == [("cancelled",)] * 2
    assert builder.asked == ["dense"]


def test_close_says_when_a_build_does_not_end(builder: HeldBuilder) -> None:
    stuck = threading.Event()

    class Stuck:
        def build(
            self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
        ) -> BuildResult:
            builder.started.set()
            assert stuck.wait(30)
            return BuildResult(BuildOutcome.BUILT)

    builds = SharedBuilds(Stuck(), on_ended=lambda asked, result: None)
    process = Process(builds)
    assert builder.started.wait(30)
    assert not builds.close(timeout_seconds=0.05)
    stuck.set()
    assert process.result().outcome is BuildOutcome.BUILT
    assert builds.close(timeout_seconds=30)


def test_builds_that_nobody_wants_any_more_are_ended_and_the_others_made(
    builds: SharedBuilds, builder: HeldBuilder, ended: list[tuple[str, BuildOutcome]]
) -> None:
    running, waiting, wanted = (Process(builds, tier) for tier in ("int8", "lean", "small"))
    assert builder.started.wait(30)
    builds.cancel_unless(lambda request: request.tier == "small")
    assert [each.result().outcome for each in (running, waiting)] == [BuildOutcome.FAILED] * 2
    builder.let_go.set()
    assert wanted.result().outcome is BuildOutcome.BUILT
    assert builder.asked == ["int8", "small"]
    assert ended == [("small", BuildOutcome.BUILT)]


def test_build_that_is_wanted_again_while_it_is_being_ended_is_made_anew(
    builds: SharedBuilds, builder: HeldBuilder
) -> None:
    running, waiting = Process(builds, "int8"), Process(builds, "lean")
    assert builder.started.wait(30)
    builds.cancel_unless(lambda request: False)
    again = [Process(builds, tier) for tier in ("int8", "lean")]
    assert [each.result().outcome for each in (running, waiting)] == [BuildOutcome.FAILED] * 2
    builder.let_go.set()
    assert [each.result().outcome for each in again] == [BuildOutcome.BUILT] * 2
