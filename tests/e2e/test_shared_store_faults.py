"""What a store does when S3 refuses, hangs or gives other bytes: a real server, behind a proxy that does so."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from unit.artifacts.artifact_factory import commit_dense, commit_tier, digest

from e2e.s3_proxy import Fault, S3Proxy, proxied
from e2e.s3_server import ENVIRONMENT, S3Server, running
from serveprune.artifacts.object_storage import ObjectStorage
from serveprune.artifacts.remote import RemoteArtifacts
from serveprune.artifacts.shared_flight import SharedFlight
from serveprune.artifacts.shared_store import SharedArtifactStore
from serveprune.artifacts.store import StoreEvent
from serveprune.errors import FailedPrecondition, Unavailable

Machine = Callable[[str], SharedArtifactStore]

TIMEOUT_SECONDS = 0.5


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from running(tmp_path_factory.mktemp("s3") / "server.log")


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[S3Proxy]:
    with proxied(s3.url) as running_proxy:
        yield running_proxy


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def storage(proxy: S3Proxy, tmp_path: Path) -> ObjectStorage:
    return ObjectStorage(
        f"s3://bucket/{tmp_path.name}", options={"endpoint_url": proxy.url}, timeout_seconds=TIMEOUT_SECONDS
    )


@pytest.fixture
def seen() -> dict[str, list[StoreEvent]]:
    return {}


@pytest.fixture
def machine(storage: ObjectStorage, tmp_path: Path, seen: dict[str, list[StoreEvent]]) -> Machine:
    def make(name: str) -> SharedArtifactStore:
        events = seen.setdefault(name, [])
        return SharedArtifactStore(tmp_path / name, RemoteArtifacts(storage), max_bytes=2**30, on_event=events.append)

    return make


def test_hanging_s3_is_given_up_after_two_attempts(proxy: S3Proxy, storage: ObjectStorage) -> None:
    proxy.rule = lambda method, path: Fault.HUNG
    for ask in (
        lambda: storage.read("one"),
        lambda: storage.list("two"),
        lambda: storage.write("three", b"x"),
        lambda: storage.create("four", b"x"),
        lambda: storage.remove("five"),
    ):
        before = len(proxy.seen)
        with pytest.raises(Unavailable, match=r"cannot be used now"):
            ask()
        assert len(proxy.seen) - before == 2


def test_line_that_breaks_off_once_in_a_file_costs_no_second_download(
    proxy: S3Proxy, machine: Machine, seen: dict[str, list[StoreEvent]]
) -> None:
    tier = commit_tier(machine("first"))
    assert machine("first").publish()
    cut: list[str] = []

    def rule(method: str, path: str) -> Fault | None:
        if method == "GET" and "/files/" in path and path not in cut:
            cut.append(path)
            return Fault.CUT
        return None

    proxy.rule = rule
    found = machine("second").open(tier.key)
    assert found is not None
    assert cut
    assert all(proxy.hits(path, method="GET") == 2 for path in cut)
    assert seen["second"] == [StoreEvent.STORED, StoreEvent.FETCHED, StoreEvent.HIT]


def test_file_that_always_breaks_off_is_no_corrupt_one(
    proxy: S3Proxy, machine: Machine, seen: dict[str, list[StoreEvent]]
) -> None:
    tier = commit_tier(machine("first"))
    machine("first").publish()
    proxy.rule = lambda method, path: Fault.CUT if method == "GET" and "/files/" in path else None
    assert machine("second").open(tier.key) is None
    assert StoreEvent.UNREACHABLE in seen["second"]
    assert StoreEvent.SHARED_CORRUPT not in seen["second"]
    proxy.rule = lambda method, path: None
    assert machine("second").open(tier.key) is not None


@pytest.mark.parametrize(
    ("part", "content"),
    [("/files/", b""), ("/files/", b"graph, but not this one"), ("/manifest", b""), ("/manifest", b"{}")],
)
def test_truncated_and_damaged_objects_are_withdrawn_and_published_anew(
    machine: Machine, s3: S3Server, seen: dict[str, list[StoreEvent]], tmp_path: Path, part: str, content: bytes
) -> None:
    tier = commit_tier(machine("first"))
    machine("first").publish()
    for name in s3.objects(f"{tmp_path.name}/artifacts/{tier.key}"):
        if part in name:
            s3.http("PUT", f"/bucket/{name}", content=content)
    assert machine("second").open(tier.key) is None
    assert seen["second"].count(StoreEvent.SHARED_CORRUPT) == 1
    assert not any(name.endswith("/manifest") for name in s3.objects(tmp_path.name))
    commit_tier(machine("second"))
    assert machine("second").publish()
    assert machine("third").open(tier.key) is not None


def test_bits_flipped_on_the_way_once_are_fetched_a_second_time(
    proxy: S3Proxy, machine: Machine, seen: dict[str, list[StoreEvent]]
) -> None:
    tier = commit_tier(machine("first"))
    machine("first").publish()
    flipped: list[str] = []

    def rule(method: str, path: str) -> Fault | None:
        if method == "GET" and "/files/" in path and path not in flipped:
            flipped.append(path)
            return Fault.FLIPPED
        return None

    proxy.rule = rule
    assert machine("second").open(tier.key) is not None
    assert flipped
    assert StoreEvent.SHARED_CORRUPT not in seen["second"]


def test_copies_serve_while_reading_is_denied_and_what_is_not_here_says_why(proxy: S3Proxy, machine: Machine) -> None:
    here = commit_tier(machine("first"), "here", built_in={"cpu": "another"})
    dense = commit_dense(machine("first"))
    proxy.rule = lambda method, path: Fault.DENIED
    # As an installation does that only serves: nothing here was made in its environment.
    found = machine("first").find_tier(digest("here"), any_environment=True)
    assert found is not None
    assert found.key == here.key
    assert machine("first").find_dense(digest("source"), any_environment=True) == dense
    with pytest.raises(FailedPrecondition, match=r"s3://bucket/.*expected the permissions that docs/shared_store.md"):
        machine("first").find_tier(digest("elsewhere"), any_environment=True)


def test_publishing_denied_is_counted_and_done_when_it_is_allowed(
    proxy: S3Proxy, machine: Machine, seen: dict[str, list[StoreEvent]]
) -> None:
    tier = commit_tier(machine("first"))
    proxy.rule = lambda method, path: Fault.DENIED if method == "PUT" else None
    assert not machine("first").publish()
    assert StoreEvent.PUBLISH_FAILED in seen["first"]
    assert machine("first").has_unpublished()
    assert machine("second").open(tier.key) is None
    proxy.rule = lambda method, path: None
    assert machine("first").publish()
    assert machine("second").open(tier.key) is not None


def test_one_artifact_that_cannot_be_published_does_not_hold_back_others(proxy: S3Proxy, machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    dense = commit_dense(first)
    tiers = [commit_tier(first, name) for name in ("a", "b", "c")]
    proxy.rule = lambda method, path: Fault.DENIED if method == "PUT" and tiers[1].key in path else None
    assert not first.publish()
    assert [second.open(tier.key) is not None for tier in tiers] == [True, False, True]
    found = second.find_dense(digest("source"))
    assert found is not None
    assert found.key == dense.key


def test_publishing_that_finds_the_store_away_tries_no_other(
    proxy: S3Proxy, machine: Machine, seen: dict[str, list[StoreEvent]]
) -> None:
    for name in ("a", "b", "c"):
        commit_tier(machine("first"), name)
    proxy.rule = lambda method, path: Fault.BUSY
    assert not machine("first").publish()
    assert seen["first"].count(StoreEvent.PUBLISH_FAILED) == 1


def test_builder_that_ends_while_another_publishes_waits_for_it(proxy: S3Proxy, machine: Machine) -> None:
    # Else it would let its lease go before the others can fetch what it built.
    first = machine("first")
    commit_tier(first, "large")
    uploading, go_on = threading.Event(), threading.Event()

    def rule(method: str, path: str) -> Fault | None:
        if method == "PUT" and "/files/" in path and not uploading.is_set():
            uploading.set()
            assert go_on.wait(60)
        return None

    first.remote.storage._timeout_seconds = 60  # the proxy takes its time on purpose
    proxy.rule = rule
    earlier = threading.Thread(target=machine("first").publish)
    earlier.start()
    assert uploading.wait(60)
    tier = commit_tier(first, "built")
    done: list[bool] = []
    own = threading.Thread(target=lambda: done.append(first.publish()))
    own.start()
    own.join(0.5)
    assert not done
    go_on.set()
    earlier.join()
    own.join()
    assert done == [True]
    assert machine("second").open(tier.key) is not None


def test_conditional_write_is_refused_also_by_a_server_that_does_not_name_the_condition(
    proxy: S3Proxy, storage: ObjectStorage
) -> None:
    proxy.rule = lambda method, path: Fault.EXISTS if method == "PUT" else None
    assert storage.create("one", b"x") is False


def test_lease_whose_answer_was_lost_is_held_all_the_same(proxy: S3Proxy, storage: ObjectStorage) -> None:
    lost: list[str] = []

    def rule(method: str, path: str) -> Fault | None:
        if method == "PUT" and "/flights/" in path and not lost:
            lost.append(path)
            return Fault.ANSWER_LOST
        return None

    proxy.rule = rule
    flight = SharedFlight(storage, "one", lease_seconds=30, on_lost=lambda: None)
    lease = flight.try_take()
    assert lost
    assert proxy.hits(lost[0], method="PUT") == 2  # the second was refused, for the first had written it
    assert lease is not None
    lease.release()


def test_artifact_that_is_removed_while_it_is_fetched_is_gone_and_not_corrupt(
    proxy: S3Proxy, machine: Machine, s3: S3Server, seen: dict[str, list[StoreEvent]], tmp_path: Path
) -> None:
    tier = commit_tier(machine("first"))
    machine("first").publish()

    def rule(method: str, path: str) -> Fault | None:
        if "/files/" in path:
            for name in s3.objects(f"{tmp_path.name}/artifacts/{tier.key}"):
                s3.http("DELETE", f"/bucket/{name}")
        return None

    proxy.rule = rule
    assert machine("second").open(tier.key) is None
    assert StoreEvent.SHARED_CORRUPT not in seen["second"]


def test_what_was_published_anew_meanwhile_is_not_withdrawn(
    proxy: S3Proxy, machine: Machine, s3: S3Server, tmp_path: Path
) -> None:
    tier = commit_tier(machine("first"), content=b"of the first")
    machine("first").publish()
    other = commit_tier(machine("other"), content=b"of the other")
    assert tier.key == other.key
    replaced: list[str] = []

    def rule(method: str, path: str) -> Fault | None:
        if "/files/" in path and method in ("GET", "HEAD") and not replaced:
            replaced.append(path)
            for name in s3.objects(f"{tmp_path.name}/artifacts/{tier.key}"):
                s3.http("DELETE", f"/bucket/{name}")
            assert machine("other").publish()
        return None

    proxy.rule = rule
    machine("second").open(tier.key)
    assert replaced
    found = machine("third").open(tier.key)
    assert found is not None
    assert found.graph.read_bytes() == b"of the other"


def test_file_taken_for_a_leftover_while_it_is_published_is_put_once_more(
    proxy: S3Proxy, machine: Machine, s3: S3Server, tmp_path: Path
) -> None:
    tier = commit_tier(machine("first"))

    def rule(method: str, path: str) -> Fault | None:
        if method == "PUT" and path.endswith("/manifest"):
            for name in s3.objects(f"{tmp_path.name}/artifacts/{tier.key}/files/"):
                s3.http("DELETE", f"/bucket/{name}")
        return None

    proxy.rule = rule
    assert machine("first").publish()
    assert machine("second").open(tier.key) is not None


class TestCredentials:
    """The SDK looks for them in many places, of which the last is an address that may never answer."""

    @pytest.fixture(autouse=True)
    def none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)

    def test_none_is_an_error_that_says_how_to_give_them(self, storage: ObjectStorage) -> None:
        with pytest.raises(FailedPrecondition, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            storage.read("one")

    def test_half_of_them_is_an_error(self, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        with pytest.raises(FailedPrecondition, match=r"Partial credentials.*set AWS_ACCESS_KEY_ID and"):
            storage.read("one")

    def test_unknown_profile_is_an_error(self, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(FailedPrecondition, match="nobody"):
            storage.read("one")

    def test_metadata_address_that_never_answers_is_given_up(
        self, s3: S3Server, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        with proxied(s3.url) as silent:
            silent.rule = lambda method, path: Fault.HUNG
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", silent.url)
            with pytest.raises(FailedPrecondition, match="set AWS_ACCESS_KEY_ID and"):
                storage.read("one")
            assert 1 <= len(silent.seen) <= 3
