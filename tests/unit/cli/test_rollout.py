import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.administered import STRANGE, TOKEN, Administered, administered
from typer.testing import CliRunner, Result

from serveprune.cli.client import ServerError
from serveprune.cli.rollout import rollout_app
from serveprune.errors import InvalidArgument, Unavailable


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Administered]:
    with administered(tmp_path) as running:
        yield running


def run(served: Administered, *words: str, token: str = TOKEN) -> Result:
    environment = {"SERVEPRUNE_ADMIN": served.url, "SERVEPRUNE_ADMIN_TOKEN": token}
    return CliRunner().invoke(rollout_app, words, env=environment)


def test_status_shows_all_rollouts_or_one(served: Administered) -> None:
    served.tick(now=0)
    served.tick(now=1, answered=20)
    served.tick(now=62, answered=20)
    shown = run(served, "status")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("fashion: int8 takes over from dense\n")
    assert "20 % > [pause 10m, 1m2s so far] > 50 % > pause until resumed" in shown.stdout
    assert "0 of 40" in shown.stdout
    assert run(served, "status", "fashion").stdout == shown.stdout


def test_status_is_json_for_machines(served: Administered) -> None:
    (rollout,) = json.loads(run(served, "status", "--json").stdout)["rollouts"]
    assert json.loads(run(served, "status", "fashion", "--json").stdout) == rollout
    assert rollout["phase"] == "waiting"


def test_status_says_so_when_there_is_none(served: Administered) -> None:
    assert served.rollouts is not None
    served.rollouts.deploy({})
    assert run(served, "status").stdout == "no model of this server has a canary\n"
    assert json.loads(run(served, "status", "--json").stdout) == {"rollouts": []}


def test_acts_move_a_rollout_in_the_name_of_an_operator(served: Administered) -> None:
    served.tick(now=0)
    paused = run(served, "pause", "fashion", "--why", "a look first")
    assert (paused.exit_code, paused.stderr) == (0, "")
    assert paused.stdout.startswith("fashion: paused, 20 % to int8; paused by ")
    resumed = run(served, "resume", "fashion", "--who", "bob")
    assert resumed.stdout == "fashion: progressing, 20 % to int8; step 2 of 4: pauses for 10m\n"
    promoted = json.loads(run(served, "promote", "fashion", "--who", "ada", "--json").stdout)
    assert (promoted["phase"], promoted["who"]) == ("promoted", "ada")
    aborted = run(served, "abort", "fashion", "--who", "ada", "--why", "customers complain")
    assert aborted.stdout == "fashion: aborted, 0 % to int8; aborted by ada: customers complain\n"
    noted = [line for line in served.audit() if line["event"] == "request"]
    assert [line["operation"] for line in noted] == [
        "rollout.pause",
        "rollout.resume",
        "rollout.promote",
        "rollout.abort",
    ]
    assert "@" in noted[0]["who"]
    assert noted[0]["why"] == "a look first"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resume", "fashion"), "HTTP 409: expected a paused rollout"),
        (("status", "nobody"), "HTTP 404: no rollout of a model named 'nobody'"),
        (("pause", "a/../b"), "HTTP 404: no rollout of a model named 'a/../b'"),
        (("pause", "fashion", "--who", "a\nb"), "HTTP 400: body: who: expected one line"),
    ],
)
def test_what_the_server_refuses_is_its_own_message(served: Administered, words: tuple[str, ...], said: str) -> None:
    served.tick(now=0)
    error = run(served, *words).exception
    assert isinstance(error, ServerError)
    assert error.message.startswith(said)


def test_wrong_token_and_no_server_are_said(served: Administered, tmp_path: Path) -> None:
    error = run(served, "status", token=STRANGE).exception
    assert isinstance(error, ServerError)
    assert error.message.startswith("HTTP 401: authorization")
    assert isinstance(run(served, "status", "--admin", "http://127.0.0.1:1").exception, Unavailable)
    assert isinstance(run(served, "status", "--token-file", str(tmp_path / "none")).exception, InvalidArgument)
