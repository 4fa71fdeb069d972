import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serveprune.cli.config import config_app
from serveprune.errors import ConfigError, InvalidArgument

CONFIG = """\
profiles:
  int8: {passes: [{quantize: {}}], gate: {min_quality: 0.97}}
models:
  boots: {source: {onnx: boots.onnx}, tiers: [int8]}
"""


def diff(*words: object, stdin: str = "") -> Result:
    return CliRunner().invoke(config_app, ["diff", *map(str, words)], input=stdin)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "boots.onnx").write_bytes(b"content")
    file = tmp_path / "old.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def new(tmp_path: Path) -> Path:
    file = tmp_path / "new.yaml"
    file.write_text(CONFIG.replace("0.97", "0.98") + "server: {executors: 3, threads_per_executor: 2}\n")
    return file


def test_diff_says_so_and_exits_0_when_nothing_differs(old: Path, new: Path) -> None:
    new.write_text(f"# Other words.\n{CONFIG}server: {{http: '127.0.0.1:8080'}}\ndeployments: {{boots: {{}}}}\n")
    same = diff(old, new)
    assert (same.exit_code, same.stdout, same.stderr) == (0, "no difference\n", "")


def test_diff_exits_1_when_something_differs(old: Path, new: Path) -> None:
    differs = diff(old, new)
    assert (differs.exit_code, differs.stderr) == (1, "")
    assert differs.stdout.startswith(
        "profiles.int8\n"
        "  ~  load     gate.min_quality: 0.97 -> 0.98  (boots@int8; judged anew by what was measured)\n"
        "\n"
        "server\n"
    )


def test_diff_prints_json_when_asked(old: Path, new: Path) -> None:
    new.write_text(
        CONFIG.replace("tiers: [int8]", "version: '2', tiers: [dense, int8]").replace("quantize: {}", "distill:")
    )
    differs = diff(old, new, "--json")
    assert differs.exit_code == 1
    assert json.loads(differs.stdout) == {
        "problems": [],
        "changes": [
            {
                "path": "models.boots.version",
                "kind": "changed",
                "old": "1",
                "new": "2",
                "consequence": "load",
                "built": [],
                "loaded": ["boots@dense", "boots@int8"],
                "note": "",
            },
            {
                "path": "profiles.int8.passes[0]",
                "kind": "removed",
                "old": {"quantize": {}},
                "new": None,
                "consequence": "build",
                "built": ["boots@int8"],
                "loaded": [],
                "note": "",
            },
            {
                "path": "profiles.int8.passes[0]",
                "kind": "added",
                "old": None,
                "new": {"distill": {}},
                "consequence": "build",
                "built": ["boots@int8"],
                "loaded": [],
                "note": "",
            },
        ],
        "built": ["boots@int8"],
        "loaded": ["boots@dense"],
        "needing_restart": [],
    }


def test_diff_prints_empty_json_and_exits_0_when_nothing_differs(old: Path) -> None:
    same = diff(old, old, "--json")
    assert same.exit_code == 0
    assert json.loads(same.stdout) == {"problems": [], "changes": [], "built": [], "loaded": [], "needing_restart": []}


def test_diff_reads_standard_input_as_if_it_lay_beside_the_other_file(old: Path, new: Path) -> None:
    assert diff(old, "-", stdin=CONFIG).exit_code == 0
    assert diff("-", old, stdin=CONFIG).exit_code == 0
    piped = diff("-", new, "--json", stdin=CONFIG)
    assert piped.exit_code == 1
    assert json.loads(piped.stdout)["needing_restart"] == ["server.executors", "server.threads_per_executor"]


def test_diff_refuses_standard_input_twice() -> None:
    refused = diff("-", "-", stdin=CONFIG)
    assert isinstance(refused.exception, InvalidArgument)
    as_json = diff("-", "-", "--json", stdin=CONFIG)
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout)["problems"] == ["expected a file beside standard input, got - twice"]


def test_diff_reports_every_problem_of_both_files_when_they_are_wrong(old: Path, new: Path) -> None:
    old.unlink()
    new.write_text(CONFIG.replace("tiers: [int8]", "tiers: [int4], color: blue"))
    expected = (
        f"{old}: expected a readable file, got: No such file or directory",
        f"{new}:4: models.boots.color: unknown key",
        f"{new}:4: models.boots.tiers[0]: expected dense or the name of a profile, got 'int4'",
    )
    refused = diff(old, new)
    assert isinstance(refused.exception, ConfigError)
    assert refused.stdout == ""
    as_json = diff(old, new, "--json")
    assert as_json.exit_code == 2
    report = json.loads(as_json.stdout)
    assert report["changes"] == []
    for problems in (refused.exception.problems, report["problems"]):
        assert [problem[: len(begin)] for problem, begin in zip(problems, expected, strict=True)] == list(expected)


def test_diff_reports_each_problem_once_when_a_wrong_file_is_given_twice(old: Path) -> None:
    old.write_text("models: {}\n")
    refused = diff(old, old)
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.problems == (f"{old}:1: models: expected at least 1 entry, got an empty mapping",)


def test_diff_reports_what_is_wrong_with_standard_input(new: Path, old: Path) -> None:
    refused = diff("-", new, stdin="models: {}\n")
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.problems == ("<stdin>:1: models: expected at least 1 entry, got an empty mapping",)
