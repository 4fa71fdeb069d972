import pytest
from pydantic import ValidationError

from serveprune.config.server import Address, ServerConfig, StoreConfig, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535)),
        ("[::1]:8080", Address("::1", 8080)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("my-host.example:80", Address("my-host.example", 80)),
    ],
)
def test_parse_address_reads_host_and_port(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", ":80", "host", "host:", "host:-1", "host:65536", "host:²", "::1:80", "a b:80", "h:80 ", 80, None, True]
)
def test_parse_address_is_refused_when_it_is_not_host_and_port(text: object) -> None:
    with pytest.raises(ValueError, match='expected "host:port" with a port from 0 to 65535, got'):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (1, 1),
        ("1", 1),
        ("512 MiB", 536_870_912),
        ("20GiB", 21_474_836_480),
        ("20gb", 20_000_000_000),
        ("1.5KiB", 1536),
        ("0.1GB", 100_000_000),
        # A float would lose the last digit.
        ("9007199254740993", 9_007_199_254_740_993),
    ],
)
def test_size_is_read_in_powers_of_1024_and_of_1000(text: object, size_bytes: int) -> None:
    assert StoreConfig.model_validate({"max_bytes": text}).max_bytes == size_bytes


@pytest.mark.parametrize(
    "text", [0, -1, 1.5, True, None, "", "-1", "GiB", "20Gi", "20 Gigs", "1e3", "9" * 400 + "GiB", "2000PiB", [1]]
)
def test_size_is_refused_when_it_is_none(text: object) -> None:
    with pytest.raises(ValidationError, match="expected a size above 0 in bytes"):
        StoreConfig.model_validate({"max_bytes": text})


def test_server_config_survives_its_own_dump() -> None:
    server = ServerConfig(http=Address("::1", 0), max_queued_requests=7)
    assert ServerConfig.model_validate(server.model_dump()) == server
    assert ServerConfig.model_validate_json(server.model_dump_json()) == server
