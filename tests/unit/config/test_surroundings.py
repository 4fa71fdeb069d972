from pathlib import Path

import pytest

from serveprune.config.loading import load_config
from serveprune.config.server import Address
from serveprune.config.surroundings import is_loopback, warnings_of_surroundings
from serveprune.errors import ConfigError

from .conftest import MODEL

IMAGE = {"SERVEPRUNE_HOST": "0.0.0.0", "SERVEPRUNE_STORE": "/var/lib/serveprune"}


def write(folder: Path, text: str) -> Path:
    file = folder / "serveprune.yaml"
    file.write_text(text + MODEL, encoding="utf-8")
    return file


def test_environment_gives_host_and_store_where_the_file_names_none(folder: Path) -> None:
    config = load_config(write(folder, ""), environment=IMAGE)

    assert config.server.http == Address("0.0.0.0", 8080)
    assert config.server.grpc == Address("0.0.0.0", 8081)
    assert config.server.metrics == Address("0.0.0.0", 8082)
    assert config.store.path == Path("/var/lib/serveprune")


def test_copies_of_a_shared_store_lie_where_the_environment_says(folder: Path) -> None:
    shared = "store: {path: 's3://bucket/tiers'}\n"

    config = load_config(write(folder, shared), environment=IMAGE)

    assert config.store.path == "s3://bucket/tiers"
    assert config.store.folder == Path("/var/lib/serveprune")
    own = shared.replace("}", ", cache_path: copies}")
    assert load_config(write(folder, own), environment=IMAGE).store.folder == folder / "copies"


def test_file_goes_first(folder: Path) -> None:
    text = 'server: {http: "127.0.0.1:9000", executors: 3}\nstore: {path: mine, max_bytes: 1GiB}\n'

    config = load_config(write(folder, text), environment=IMAGE)

    assert config.server.http == Address("127.0.0.1", 9000)
    assert config.server.grpc == Address("0.0.0.0", 8081)
    assert config.server.executors == 3
    assert config.store.path == folder / "mine"


def test_admin_api_has_the_host_where_there_is_one(folder: Path) -> None:
    text = 'server: {admin: {http: "127.0.0.1:9083", tokens: {environment: TOKENS}}}\n'

    admin = load_config(write(folder, text), environment=IMAGE).server.admin

    assert admin is not None
    assert admin.http == Address("127.0.0.1", 9083)
    assert admin.grpc == Address("0.0.0.0", 8084)


def test_nothing_changes_without_the_variables(folder: Path) -> None:
    file = write(folder, "")

    assert load_config(file, environment={"SERVEPRUNE_HOST": ""}) == load_config(file, environment={})
    assert load_config(file, environment={}).server.http == Address("127.0.0.1", 8080)


@pytest.mark.parametrize("host", ["::", "[::]"])
def test_host_of_ipv6_needs_no_brackets(folder: Path, host: str) -> None:
    config = load_config(write(folder, ""), environment={"SERVEPRUNE_HOST": host})

    assert config.server.grpc == Address("::", 8081)


@pytest.mark.parametrize("host", ["0.0.0.0:80", "a host", "http://x"])
def test_host_that_is_none_is_told_by_its_variable(folder: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="expected SERVEPRUNE_HOST to be a host") as caught:
        load_config(write(folder, ""), environment={"SERVEPRUNE_HOST": host})

    assert repr(host) in str(caught.value)


@pytest.mark.parametrize("section", ["server: 3\n", "server: [http]\n", "store: true\n"])
def test_section_of_another_form_is_reported_as_ever(folder: Path, section: str) -> None:
    reported = []
    for environment in ({}, IMAGE):
        with pytest.raises(ConfigError) as caught:
            load_config(write(folder, section), environment=environment)
        reported.append(caught.value.problems)

    assert reported[0] == reported[1]


def test_address_that_the_file_keeps_to_itself_is_warned_of(folder: Path) -> None:
    server = load_config(write(folder, 'server: {http: "127.0.0.1:8080"}\n'), environment=IMAGE).server

    (warning,) = warnings_of_surroundings(server, IMAGE)
    assert warning.startswith("server.http is 127.0.0.1:8080 in the config")
    assert warnings_of_surroundings(server, {}) == []
    assert warnings_of_surroundings(server, {"SERVEPRUNE_HOST": "127.0.0.1"}) == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("fe80::1%eth0", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
