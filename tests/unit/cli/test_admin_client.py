from pathlib import Path

import pytest

from serveprune.cli.admin_client import admin_client, this_operator
from serveprune.errors import InvalidArgument

TOKEN = "token-of-an-operator-01"
NOTHING = {"ca_file": None, "cert": None, "key": None}


def test_token_is_that_of_the_file_before_that_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    for token_file, environment in ((file, {}), (None, {"SERVEPRUNE_ADMIN_TOKEN": TOKEN})):
        client = admin_client("http://localhost:1", token_file=token_file, environment=environment, **NOTHING)
        assert client._token == TOKEN
    other = {"SERVEPRUNE_ADMIN_TOKEN": "another-operators-token"}
    assert admin_client("http://localhost:1", token_file=file, environment=other, **NOTHING)._token == TOKEN


@pytest.mark.parametrize("environment", [{}, {"SERVEPRUNE_ADMIN_TOKEN": " "}])
def test_missing_token_is_said_before_anything_is_sent(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="expected an operator's token, got none: set SERVEPRUNE_ADMIN_TOKEN"):
        admin_client("http://localhost:1", token_file=None, environment=environment, **NOTHING)


def test_token_that_can_be_none_is_not_quoted() -> None:
    with pytest.raises(InvalidArgument) as refused:
        admin_client("http://localhost:1", token_file=None, environment={"SERVEPRUNE_ADMIN_TOKEN": "secret"}, **NOTHING)
    assert "secret" not in refused.value.message


def test_operator_is_this_user_at_this_host() -> None:
    user, _, host = this_operator().partition("@")
    assert user
    assert host


@pytest.mark.parametrize(
    ("url", "is_warned_of"),
    [
        ("http://127.0.0.1:8083", False),
        ("localhost:8083", False),
        ("http://[::1]:8083", False),
        ("https://serve.example.org:8083", False),
        ("http://serve.example.org:8083", True),
        ("10.0.0.1:8083", True),
    ],
)
def test_token_in_plain_text_to_another_machine_is_warned_of(
    url: str, is_warned_of: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    admin_client(url, token_file=None, environment={"SERVEPRUNE_ADMIN_TOKEN": TOKEN}, **NOTHING)
    said = capsys.readouterr().err
    assert ("in plain text" in said) is is_warned_of
    assert TOKEN not in said
