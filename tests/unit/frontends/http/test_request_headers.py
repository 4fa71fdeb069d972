import pytest

from serveprune.errors import InvalidArgument
from serveprune.frontends.http.errors import UnsupportedMediaType
from serveprune.frontends.http.request_headers import RequestHeaders, parse_headers


def test_headers_are_read_when_they_mean_something() -> None:
    headers = [
        (b"host", b"x"),
        (b"content-length", b"12"),
        (b"content-encoding", b" GZIP "),
        (b"inference-header-content-length", b"7"),
        (b"x-compression-tier", b" int8 "),
        (b"content-type", b"application/octet-stream"),
    ]

    assert parse_headers(headers) == RequestHeaders(12, b"gzip", 7, "int8", None, everything=headers)


def test_headers_may_all_be_absent() -> None:
    assert parse_headers(()) == RequestHeaders(None, b"identity", None, None, None)


def test_tier_is_absent_when_its_header_is_empty() -> None:
    assert parse_headers([(b"x-compression-tier", b"")]).tier is None


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"text/plain", b"text/plain"),
        (b"Text/Plain; charset=UTF-8", b"text/plain"),
        (b'text/plain;charset="utf-8"', b"text/plain"),
        (b"image/png", b"image/png"),
        (b"IMAGE/JPEG", b"image/jpeg"),
        (b"application/json", None),
        (b"application/octet-stream", None),
        (b"application/x-www-form-urlencoded", None),
        (b"text/html", None),
        (b"nonsense", None),
        (b"", None),
    ],
)
def test_body_is_one_input_when_it_is_text_or_an_image(content_type: bytes, expected: bytes | None) -> None:
    assert parse_headers([(b"content-type", content_type)]).raw_media_type == expected


def test_body_is_a_request_when_the_length_of_its_json_is_declared() -> None:
    headers = [(b"content-type", b"text/plain"), (b"inference-header-content-length", b"3")]

    assert parse_headers(headers).raw_media_type is None


def test_text_is_refused_when_it_is_not_in_utf8() -> None:
    with pytest.raises(UnsupportedMediaType, match="UTF-8"):
        parse_headers([(b"content-type", b"text/plain; charset=latin1")])


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1.5", b"+1", b"0x10", b"1_0", b"9" * 5000])
def test_header_length_is_refused_when_it_is_no_number(value: bytes) -> None:
    with pytest.raises(InvalidArgument, match="inference-header-content-length: expected a number"):
        parse_headers([(b"inference-header-content-length", value)])


def test_header_is_refused_when_it_is_given_twice_differently() -> None:
    with pytest.raises(InvalidArgument, match="x-compression-tier: expected one value"):
        parse_headers([(b"x-compression-tier", b"int8"), (b"x-compression-tier", b"dense")])


def test_header_is_accepted_when_it_is_given_twice_alike() -> None:
    assert parse_headers([(b"x-compression-tier", b"int8")] * 2).tier == "int8"


def test_objective_is_read_as_it_is_written() -> None:
    parsed = parse_headers([(b"x-max-latency-ms", b" 50 "), (b"x-min-quality", b"0.95")])

    assert (parsed.max_latency_ms, parsed.min_quality) == ("50", "0.95")


def test_objective_is_absent_when_its_headers_are_empty() -> None:
    parsed = parse_headers([(b"x-max-latency-ms", b""), (b"x-min-quality", b" ")])

    assert (parsed.max_latency_ms, parsed.min_quality) == (None, None)


@pytest.mark.parametrize("name", [b"x-max-latency-ms", b"x-min-quality"])
def test_objective_is_refused_when_it_is_given_twice_differently(name: bytes) -> None:
    with pytest.raises(InvalidArgument, match=f"{name.decode()}: expected one value"):
        parse_headers([(name, b"1"), (name, b"2")])
