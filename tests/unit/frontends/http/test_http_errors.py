import pytest

from serveprune.errors import (
    Cancelled,
    Code,
    ConfigError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MessageTooLarge,
    MissingExtra,
    NotFound,
    ResourceExhausted,
    ServePruneError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from serveprune.frontends.http.errors import (
    BodyTimeout,
    MethodNotAllowed,
    NoSuchPath,
    UnsupportedMediaType,
    headers_of,
    status_of,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgument("x"), 400),
        (ConfigError(["x"]), 400),
        (Unauthenticated("x"), 401),
        (NotFound("x"), 404),
        (NoSuchPath("x"), 404),
        (MethodNotAllowed("x", allowed=("GET",)), 405),
        (BodyTimeout("x"), 408),
        (FailedPrecondition("x"), 409),
        (MissingExtra("x"), 409),
        (MessageTooLarge("x"), 413),
        (UnsupportedMediaType("x"), 415),
        (ResourceExhausted("x"), 429),
        (Cancelled("x"), 499),
        (Internal("x"), 500),
        (DataLoss("x"), 500),
        (Unimplemented("x"), 501),
        (Unavailable("x"), 503),
        (DeadlineExceeded("x"), 504),
    ],
)
def test_error_has_its_status(error: ServePruneError, status: int) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_status(code: Code) -> None:
    class Failure(ServePruneError):
        pass

    Failure.code = code

    assert 400 <= status_of(Failure("x")) <= 504


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Unavailable("x", retry_after_seconds=2.1), b"3"),
        (Unavailable("x", retry_after_seconds=0), b"1"),
        (Unavailable("x"), b"1"),
        (ResourceExhausted("x", retry_after_seconds=0.2), b"1"),
    ],
)
def test_temporary_error_says_when_to_come_back(error: ServePruneError, seconds: bytes) -> None:
    assert headers_of(error) == [(b"retry-after", seconds)]


def test_lasting_error_does_not_say_when_to_come_back() -> None:
    assert headers_of(MessageTooLarge("x", retry_after_seconds=1.0)) == []


def test_wrong_method_hears_the_right_ones() -> None:
    assert headers_of(MethodNotAllowed("x", allowed=("GET", "HEAD"))) == [(b"allow", b"GET, HEAD")]


def test_slow_client_is_cut_off() -> None:
    assert headers_of(BodyTimeout("x")) == [(b"connection", b"close")]


def test_refusal_for_want_of_a_token_names_the_scheme() -> None:
    assert headers_of(Unauthenticated("x")) == [(b"www-authenticate", b"Bearer")]
