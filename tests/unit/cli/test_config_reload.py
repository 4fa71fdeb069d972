import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.administered import STRANGE, TOKEN, Administered, administered
from typer.testing import CliRunner, Result

from serveprune.cli.client import ServerError
from serveprune.cli.config import config_app


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Administered]:
    with administered(tmp_path) as running:
        yield running


def reload(served: Administered, *words: str, token: str = TOKEN) -> Result:
    environment = {"SERVEPRUNE_ADMIN": served.url, "SERVEPRUNE_ADMIN_TOKEN": token}
    return CliRunner().invoke(config_app, ["reload", *words], env=environment)


def test_reload_says_what_changed(served: Administered) -> None:
    assert (reload(served).exit_code, reload(served).stdout) == (0, "nothing has changed\n")
    served.write_config(
        models={"relu": {"source": {"onnx": "relu.onnx"}, "max_batch_size": 3}}, deployments={"relu": {"priority": 3}}
    )
    applied = reload(served, "--why", "more at once")
    assert applied.exit_code == 0
    first, second = applied.stdout.splitlines()
    assert first.split() == ["load", "models.relu.max_batch_size:", "32", "->", "3", "(relu@dense)"]
    assert second.split()[:3] == ["at", "once", "deployments.relu.priority:"]
    assert served.audit()[-1]["why"] == "more at once"
    assert json.loads(reload(served, "--json").stdout)["outcome"] == "unchanged"


@pytest.mark.parametrize(
    ("text", "problem"), [("models: [", "serveprune.yaml:1"), ("server: {executors: 7}", "models")]
)
def test_rejected_reload_shows_the_problems_and_exits_2(served: Administered, text: str, problem: str) -> None:
    served.write_config(text)
    rejected = reload(served)
    assert rejected.exit_code == 2
    assert problem in rejected.stdout
    assert "not applied, the server goes on with what it had" in rejected.stderr
    assert "Bearer" not in rejected.output
    as_json = reload(served, "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["outcome"] == "rejected"


def test_reload_that_fails_exits_1(served: Administered) -> None:
    served.failure = ZeroDivisionError()
    served.write_config(deployments={"relu": {"priority": 3}})
    failed = reload(served)
    assert (failed.exit_code, failed.stdout) == (1, "unexpected failure; see the server's log\n")


def test_reload_that_may_not_be_asked_for_is_an_error(served: Administered) -> None:
    error = reload(served, token=STRANGE).exception
    assert isinstance(error, ServerError)
    assert error.status == 401
