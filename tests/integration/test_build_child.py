import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil
from unit.compression.requests import int8

from serveprune.artifacts.builder import BuildOutcome, BuildProgress, BuildRequest, BuildResult
from serveprune.artifacts.key import source_recipe
from serveprune.artifacts.store import ArtifactStore
from serveprune.compression.child import SubprocessBuilder
from serveprune.config.server import BuildsConfig, StoreConfig


def build(
    builder: SubprocessBuilder,
    request: BuildRequest,
    *,
    on_progress: Callable[[BuildProgress], None] = lambda progress: None,
    cancelled: Event | None = None,
) -> BuildResult:
    return builder.build(request, on_progress=on_progress, cancelled=cancelled or Event())


def workers(root: int | None = None) -> list[psutil.Process]:
    """The build processes below a process (this one by default), zombies left out."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            if "serveprune.compression.worker" in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@contextmanager
def held_import(store: ArtifactStore, request: BuildRequest) -> Iterator[None]:
    """Make every build of this model wait, so that a test can act while it runs."""
    with store.single_flight(f"import-{source_recipe(request.model)}"):
        yield


def assert_sound(store: ArtifactStore) -> None:
    assert all(result.problem is None for result in store.verify())
    store.collect_garbage()
    leftovers = store.root / "tmp"
    assert not leftovers.exists() or list(leftovers.iterdir()) == []


def test_child_builds_then_finds_it_in_the_store(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    builder = SubprocessBuilder(store_config, BuildsConfig())
    seen: list[BuildProgress] = []
    first = build(builder, request_of_tier, on_progress=seen.append)
    assert (first.outcome, first.reasons, first.log) == (BuildOutcome.BUILT, (), None)
    assert first.key
    assert store.open(first.key) is not None
    assert {"importing", "quantize", "measuring quality", "storing"} <= {progress.stage for progress in seen}
    second = build(builder, request_of_tier)
    assert (second.outcome, second.key) == (BuildOutcome.CACHED, first.key)
    assert workers() == []


def test_child_keeps_a_tier_that_its_gate_refuses(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    strict = request_of_tier.model_copy(update={"profile": int8(min_quality=1.5)})
    result = build(SubprocessBuilder(store_config, BuildsConfig()), strict)
    assert result.outcome is BuildOutcome.REFUSED
    assert "min_quality 1.5" in result.reasons[0]
    assert result.key
    kept = store.open(result.key)
    assert kept is not None
    assert kept.manifest.measurements is not None


def test_build_fails_and_the_store_stays_sound_when_the_child_is_killed(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    def kill(progress: BuildProgress) -> None:
        if progress.stage == "quantize":
            for worker in workers():
                worker.send_signal(signal.SIGKILL)

    builder = SubprocessBuilder(store_config, BuildsConfig())
    result = build(builder, request_of_tier, on_progress=kill)
    assert result.outcome is BuildOutcome.FAILED
    assert not result.bad_input
    assert "SIGKILL" in result.reasons[0]
    assert result.log is not None
    assert result.log.is_file()
    assert result.log.is_relative_to(store.root)
    assert_sound(store)
    assert build(builder, request_of_tier).outcome is BuildOutcome.BUILT


def test_build_fails_when_the_child_uses_too_much_memory(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    # Python with onnx alone is more than this.
    limits = BuildsConfig.model_validate({"max_memory_bytes": "24MiB"})
    result = build(SubprocessBuilder(store_config, limits), request_of_tier)
    assert result.outcome is BuildOutcome.FAILED
    assert "MiB of 24 MiB allowed by builds.max_memory_bytes" in result.reasons[0]
    assert result.reasons[0].startswith("killed: it used ")
    assert workers() == []
    assert_sound(store)


def test_build_fails_when_it_takes_too_long(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    builder = SubprocessBuilder(store_config, BuildsConfig(timeout_seconds=1.5))
    with held_import(store, request_of_tier):
        result = build(builder, request_of_tier)
    assert result.outcome is BuildOutcome.FAILED
    assert "timeout_seconds (1.5)" in result.reasons[0]
    assert workers() == []
    assert_sound(store)


def test_build_ends_soon_when_it_is_cancelled(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    cancelled = Event()
    with held_import(store, request_of_tier):
        # The first progress comes just before the child waits for the lock.
        result = build(
            SubprocessBuilder(store_config, BuildsConfig()),
            request_of_tier,
            on_progress=lambda progress: cancelled.set(),
            cancelled=cancelled,
        )
    assert (result.outcome, result.reasons) == (BuildOutcome.FAILED, ("cancelled",))
    assert workers() == []
    assert_sound(store)


def test_child_dies_when_its_parent_is_killed(
    tmp_path: Path, store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    script = textwrap.dedent(
        """
        import sys
        from threading import Event
        from serveprune.artifacts.builder import BuildRequest
        from serveprune.compression.child import SubprocessBuilder
        from serveprune.config.server import BuildsConfig, StoreConfig

        request = BuildRequest.model_validate_json(sys.argv[1])
        builder = SubprocessBuilder(StoreConfig.model_validate_json(sys.argv[2]), BuildsConfig())
        builder.build(request, on_progress=lambda progress: print("running", flush=True), cancelled=Event())
        """
    )
    with held_import(store, request_of_tier):
        arguments = [request_of_tier.model_dump_json(), store_config.model_dump_json()]
        with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"running\n"
            (worker,) = workers(parent.pid)
            parent.kill()
            parent.wait()
        gone, alive = psutil.wait_procs([worker], timeout=30)
        assert (len(gone), alive) == (1, [])
    store.collect_garbage()
    assert_sound(store)


def test_child_has_the_limits_of_the_configuration(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    cancelled = Event()
    found: dict[str, str | int] = {}

    def look(progress: BuildProgress) -> None:
        (worker,) = workers()
        found["niceness"] = worker.nice()
        found["oom"] = Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip()
        found["group"] = os.getpgid(worker.pid)
        found["pid"] = worker.pid
        found["temporary"] = worker.environ()["TMPDIR"]
        cancelled.set()

    with held_import(store, request_of_tier):
        builder = SubprocessBuilder(store_config, BuildsConfig(niceness=7))
        build(builder, request_of_tier, on_progress=look, cancelled=cancelled)
    assert found["niceness"] == min(19, os.nice(0) + 7)
    assert found["oom"] == "800"
    # Its own group, so that Ctrl-C in a terminal reaches the parent alone.
    assert found["group"] == found["pid"]
    # Where the next process that stores something removes it, should parent and child be killed.
    assert Path(str(found["temporary"])).parent == store.root / "tmp"
    assert not Path(str(found["temporary"])).exists()


def test_build_is_bad_input_when_the_graph_is_damaged(
    tmp_path: Path, store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07garbage")
    result = build(SubprocessBuilder(store_config, BuildsConfig()), request_of_tier)
    assert (result.outcome, result.bad_input) == (BuildOutcome.FAILED, True)
    assert "net.onnx" in result.reasons[0]
    assert result.log is not None
    assert "Traceback" in result.log.read_text()
    assert "Traceback" not in result.reasons[0]
    assert store.entries() == []


def test_build_fails_with_the_last_words_when_the_child_cannot_start(
    store_config: StoreConfig, request_of_tier: BuildRequest
) -> None:
    builder = SubprocessBuilder(store_config, BuildsConfig(), worker="serveprune.compression.no_such_module")
    result = build(builder, request_of_tier)
    assert result.outcome is BuildOutcome.FAILED
    assert "status 1" in result.reasons[0]
    assert "no_such_module" in result.reasons[0]


def test_build_fails_when_the_child_sends_garbage(store_config: StoreConfig, request_of_tier: BuildRequest) -> None:
    # A module of the standard library that prints its input in another form.
    result = build(SubprocessBuilder(store_config, BuildsConfig(), worker="json.tool"), request_of_tier)
    assert result.outcome is BuildOutcome.FAILED
    assert "no build event: '{'" in result.reasons[0]


def test_two_children_at_once_build_one_artifact(
    store_config: StoreConfig, store: ArtifactStore, request_of_tier: BuildRequest
) -> None:
    results: list[BuildResult] = []
    builder = SubprocessBuilder(store_config, BuildsConfig())
    threads = [Thread(target=lambda: results.append(build(builder, request_of_tier))) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sorted(result.outcome for result in results) == [BuildOutcome.BUILT, BuildOutcome.CACHED]
    assert len({result.key for result in results}) == 1
    assert len(store.entries()) == 2
