"""Several processes that want the same artifact; threads stand for them, for locks are of open files."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

import psutil
import pytest
from unit.compression.requests import int8

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.store import ArtifactStore
from serveprune.compression.child import SubprocessBuilder
from serveprune.compression.single_flight_builder import SingleFlightBuilder
from serveprune.config.server import BuildsConfig, StoreConfig

PATIENCE_SECONDS = 120.0


class CountingBuilder:
    """The real builder; counts the builds, and holds each until it is let go."""

    def __init__(self, builder: SubprocessBuilder) -> None:
        self._builder = builder
        self._lock = Lock()
        self.begun = Event()
        self.let_go = Event()
        self.count = 0

    def build(
        self, request: BuildRequest, *, on_progress: Callable[[BuildProgress], None], cancelled: Event
    ) -> BuildResult:
        with self._lock:
            self.count += 1
        self.begun.set()
        assert self.let_go.wait(PATIENCE_SECONDS)
        return self._builder.build(request, on_progress=on_progress, cancelled=cancelled)


class Asking:
    """One who asks, and what it hears."""

    def __init__(self, builder: SingleFlightBuilder, request: BuildRequest, pool: ThreadPoolExecutor) -> None:
        self.cancelled = Event()
        self.heard = Event()
        self.stages: list[str] = []
        self.result: Future[BuildResult] = pool.submit(
            builder.build, request, on_progress=self._hear, cancelled=self.cancelled
        )

    def _hear(self, progress: BuildProgress) -> None:
        self.stages.append(progress.stage)
        self.heard.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as running:
        yield running


def single(counting: CountingBuilder, store: StoreConfig, builds: BuildsConfig | None = None) -> SingleFlightBuilder:
    return SingleFlightBuilder(counting, store, builds or BuildsConfig(), threads_of_serving=1)


def begun(
    counting: CountingBuilder, request: BuildRequest, pool: ThreadPoolExecutor, *builders: SingleFlightBuilder
) -> list[Asking]:
    """Have the first builder build, and the others wait."""
    first, *others = builders
    asking = [Asking(first, request, pool)]
    assert counting.begun.wait(PATIENCE_SECONDS)
    asking += [Asking(builder, request, pool) for builder in others]
    for each in asking[1:]:
        assert each.heard.wait(PATIENCE_SECONDS)
        assert each.stages == ["waiting for another process's build"]
    return asking


def test_one_builds_and_the_others_find_what_it_left(
    store_config: StoreConfig, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    counting = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
    asking = begun(counting, request_of_tier, pool, *(single(counting, store_config) for _ in range(4)))
    counting.let_go.set()
    built, *found = [each.result.result(PATIENCE_SECONDS) for each in asking]

    assert counting.count == 1
    assert (built.outcome, built.is_anothers) == (BuildOutcome.BUILT, False)
    assert {(each.outcome, each.key, each.is_anothers) for each in found} == {(BuildOutcome.CACHED, built.key, True)}


def test_refusal_is_found_with_its_reasons(
    store_config: StoreConfig, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    strict = request_of_tier.model_copy(update={"profile": int8(min_quality=1.5)})
    counting = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
    asking = begun(counting, strict, pool, single(counting, store_config), single(counting, store_config))
    counting.let_go.set()
    first, second = [each.result.result(PATIENCE_SECONDS) for each in asking]

    assert counting.count == 1
    assert (second.outcome, second.reasons) == (BuildOutcome.REFUSED, first.reasons)
    assert "min_quality 1.5" in second.reasons[0]


def test_failure_is_that_of_all_who_waited_and_of_nobody_who_asks_later(
    store_config: StoreConfig, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    hurried = BuildsConfig(timeout_seconds=0.01)
    counting = CountingBuilder(SubprocessBuilder(store_config, hurried))
    builders = [single(counting, store_config, hurried) for _ in range(3)]
    asking = begun(counting, request_of_tier, pool, *builders)
    counting.let_go.set()
    first, *others = [each.result.result(PATIENCE_SECONDS) for each in asking]

    assert counting.count == 1
    assert first.outcome is BuildOutcome.FAILED
    assert "builds.timeout_seconds" in first.reasons[0]
    assert [(each.outcome, each.reasons, each.log) for each in others] == [
        (first.outcome, first.reasons, first.log)
    ] * 2
    assert [each.is_anothers for each in (first, *others)] == [False, True, True]

    again = builders[1].build(request_of_tier, on_progress=lambda progress: None, cancelled=Event())
    assert again.outcome is BuildOutcome.FAILED
    assert not again.is_anothers
    assert counting.count == 2


def test_failure_within_other_limits_is_no_reason_not_to_build(
    store_config: StoreConfig, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    limits = BuildsConfig(timeout_seconds=0.01)
    hurried = CountingBuilder(SubprocessBuilder(store_config, limits))
    patient = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
    patient.let_go.set()
    builders = single(hurried, store_config, limits), single(patient, store_config)
    asking = begun(hurried, request_of_tier, pool, *builders)
    hurried.let_go.set()

    assert asking[0].result.result(PATIENCE_SECONDS).outcome is BuildOutcome.FAILED
    assert asking[1].result.result(PATIENCE_SECONDS).outcome is BuildOutcome.BUILT


def test_waiting_ends_when_it_is_cancelled_and_the_build_goes_on(
    store_config: StoreConfig, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    counting = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
    first, second = begun(
        counting, request_of_tier, pool, single(counting, store_config), single(counting, store_config)
    )
    second.cancelled.set()
    assert second.result.result(PATIENCE_SECONDS).reasons == ("cancelled",)
    counting.let_go.set()
    assert first.result.result(PATIENCE_SECONDS).outcome is BuildOutcome.BUILT


def test_next_one_builds_when_the_first_is_cancelled(
    store_config: StoreConfig, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    counting = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
    first, second = begun(
        counting, request_of_tier, pool, single(counting, store_config), single(counting, store_config)
    )
    first.cancelled.set()
    counting.let_go.set()

    assert first.result.result(PATIENCE_SECONDS).reasons == ("cancelled",)
    assert second.result.result(PATIENCE_SECONDS).outcome is BuildOutcome.BUILT
    assert counting.count == 2


def test_next_one_builds_when_the_first_is_killed(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    script = textwrap.dedent(
        """
        import sys
        from threading import Event
        from serveprune.artifacts.builder import BuildRequest
        from serveprune.compression.single_flight_builder import SingleFlightBuilder
        from serveprune.config.server import BuildsConfig, StoreConfig

        class Stuck:
            def build(self, request, *, on_progress, cancelled):
                print("building", flush=True)
                Event().wait()

        store = StoreConfig.model_validate_json(sys.argv[2])
        builder = SingleFlightBuilder(Stuck(), store, BuildsConfig(), threads_of_serving=1)
        request = BuildRequest.model_validate_json(sys.argv[1])
        builder.build(request, on_progress=print, cancelled=Event())
        """
    )
    arguments = [request_of_tier.model_dump_json(), store_config.model_dump_json()]
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        counting = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
        counting.let_go.set()
        asking = Asking(single(counting, store_config), request_of_tier, pool)
        assert asking.heard.wait(PATIENCE_SECONDS)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)

    assert asking.result.result(PATIENCE_SECONDS).outcome is BuildOutcome.BUILT
    assert counting.count == 1


def test_no_process_is_started_by_those_who_wait(
    store_config: StoreConfig, request_of_tier: BuildRequest, pool: ThreadPoolExecutor
) -> None:
    # Other tests of this process may have left servers running, which others still use.
    before = set(psutil.Process(os.getpid()).children(recursive=True))
    holding = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
    waiting = SingleFlightBuilder(
        SubprocessBuilder(store_config, BuildsConfig()), store_config, BuildsConfig(), threads_of_serving=1
    )
    asking = begun(holding, request_of_tier, pool, single(holding, store_config), waiting)
    assert set(psutil.Process(os.getpid()).children(recursive=True)) <= before
    holding.let_go.set()
    assert asking[1].result.result(PATIENCE_SECONDS).outcome is BuildOutcome.CACHED


def test_source_that_is_gone_fails_as_ever(
    store_config: StoreConfig, tmp_path: Path, request_of_tier: BuildRequest
) -> None:
    (tmp_path / "net.onnx").unlink()
    counting = CountingBuilder(SubprocessBuilder(store_config, BuildsConfig()))
    counting.let_go.set()
    result = single(counting, store_config).build(request_of_tier, on_progress=lambda progress: None, cancelled=Event())
    assert result.outcome is BuildOutcome.FAILED
    assert "net.onnx" in result.reasons[0]
