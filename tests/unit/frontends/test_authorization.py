import hmac
from pathlib import Path

import pytest

from serveprune.config.security import TokensConfig
from serveprune.errors import FailedPrecondition, Unauthenticated
from serveprune.frontends.authorization import (
    Authorization,
    any_token,
    parse_tokens,
    shown_in,
    shown_in_metadata,
    watched_tokens,
)

FIRST, SECOND, STRANGE = "first-token-of-two-0001", "c2Vjb25kLXRva2Vu+/~.==", "nobody-knows-this-token"


def judge(tmp_path: Path) -> Authorization:
    file = tmp_path / "tokens"
    file.write_text(f"{FIRST}\n{SECOND}\n")
    return Authorization(watched_tokens(TokensConfig(file=file), environment={}))


def test_tokens_are_read_one_a_line_without_comments() -> None:
    text = f"\ufeff# of two teams\r\n\n  {FIRST}\t# the first\n{SECOND}#the second".encode()

    assert parse_tokens(text, where="here") == [FIRST.encode(), SECOND.encode()]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "here: expected at least one token, got none"),
        (b"\n # nothing but a comment\n", "here: expected at least one token, got none"),
        (b"\nonly-15-letters", "here: line 2: expected a token of 16 to 4096 characters, got 15"),
        (b"x" * 4097, "here: line 1: expected a token of 16 to 4096 characters, got 4097"),
        (b"Bearer secret-secret-secret", "here: line 1: expected one token of letters, digits"),
        (b"secret=secret-secret-secret", "here: line 1: expected one token of letters, digits"),
        ("sécret-sécret-sécret".encode(), "here: line 1: expected one token of letters, digits"),
        (b"\xff\xfe\x00secret-secret-secret", "here: line 1: expected one token of letters, digits"),
    ],
)
def test_tokens_are_refused_without_being_quoted_when_something_can_be_none(content: bytes, problem: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        parse_tokens(content, where="here")
    assert refused.value.message.startswith(problem)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("token", [FIRST, SECOND])
def test_caller_is_let_in_when_it_shows_any_of_the_tokens(tmp_path: Path, scheme: str, token: str) -> None:
    assert judge(tmp_path).refusal([f"{scheme} {token}".encode()]) is None


@pytest.mark.parametrize(
    "shown",
    [
        [],
        [b""],
        [b"Bearer"],
        [f"Bearer {STRANGE}".encode()],
        [f"Bearer {FIRST}x".encode()],
        [f"Bearer {FIRST[:-1]}".encode()],
        [f"Bearer {FIRST.upper()}".encode()],
        [f"Bearer{FIRST}".encode()],
        [f"Basic {FIRST}".encode()],
        [FIRST.encode()],
        [f"Bearer {FIRST}, Bearer {SECOND}".encode()],
        [f"Bearer {FIRST}".encode(), f"Bearer {FIRST}".encode()],
        [b"Bearer \xff\xfe"],
        [b"Bearer " + b"a" * 100_000],
    ],
)
def test_caller_is_refused_without_being_quoted_when_it_shows_anything_else(tmp_path: Path, shown: list[bytes]) -> None:
    refusal = judge(tmp_path).refusal(shown)
    assert isinstance(refusal, Unauthenticated)
    assert not any(secret in refusal.message for secret in (FIRST, SECOND, STRANGE, "aaaa"))


@pytest.mark.parametrize("token", [FIRST, SECOND, STRANGE, "x"])
def test_every_token_is_compared_whichever_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    compared: list[tuple[int, int]] = []
    compare_digest = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare_digest(one, other)

    judging = judge(tmp_path)
    monkeypatch.setattr(hmac, "compare_digest", compare)
    judging.refusal([f"Bearer {token}".encode()])
    assert compared == [(32, 32), (32, 32)]


def test_tokens_of_file_and_environment_count_together(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(FIRST)
    config = TokensConfig(file=file, environment="TOKENS")
    judging = Authorization(watched_tokens(config, environment={"TOKENS": f"{SECOND}\n{FIRST}"}))
    for token in (FIRST, SECOND):
        assert judging.refusal([f"Bearer {token}".encode()]) is None
    assert any_token(config, environment={"TOKENS": SECOND}) == SECOND
    assert any_token(TokensConfig(file=file), environment={}) == FIRST


@pytest.mark.parametrize("environment", [{}, {"TOKENS": ""}, {"TOKENS": "short"}])
def test_tokens_of_the_environment_are_refused_without_the_variable_being_named(environment: dict[str, str]) -> None:
    with pytest.raises(FailedPrecondition, match=r"^server\.tokens\.environment: ") as refused:
        watched_tokens(TokensConfig(environment="TOKENS"), environment=environment)
    assert "TOKENS" not in refused.value.message


def test_too_many_tokens_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("".join(f"token-number-{number:05}\n" for number in range(1025)))
    with pytest.raises(FailedPrecondition, match="expected at most 1024 tokens, got 1025"):
        watched_tokens(TokensConfig(file=file), environment={})


def test_tokens_are_in_no_representation(tmp_path: Path) -> None:
    judging = judge(tmp_path)
    watched = vars(judging)["_tokens"]
    assert not any(token in repr([judging, judging.tokens, watched]) for token in (FIRST, SECOND))


def test_what_is_shown_is_found_in_headers_and_metadata() -> None:
    assert shown_in([(b"host", b"x"), (b"authorization", b"a"), (b"authorization", b"b")]) == [b"a", b"b"]
    assert shown_in_metadata([("authorization", "a"), ("x-bin", b"c"), ("authorization", b"b")]) == [b"a", b"b"]
    assert shown_in_metadata(()) == shown_in(()) == []
