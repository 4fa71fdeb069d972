from pathlib import Path

import pytest
import yaml

from serveprune.administration.reload_document import config_digest, rejection, reload_document
from serveprune.config.changes import config_changes
from serveprune.config.loading import load_config
from serveprune.config.root import ServePruneConfig
from serveprune.errors import Code
from serveprune.reloading.reloader import Reload, ReloadOutcome


def config(folder: Path, text: str = "", **model: object) -> ServePruneConfig:
    (folder / "boots.onnx").write_bytes(b"content")
    file = folder / "serveprune.yaml"
    models = {"models": {"boots": {"source": {"onnx": "boots.onnx"}, **model}}}
    file.write_text(yaml.safe_dump(models) + text)
    return load_config(file)


def test_document_tells_changes_with_what_they_take(tmp_path: Path) -> None:
    changes = config_changes(config(tmp_path), config(tmp_path, max_batch_size=3))
    document = reload_document(Reload(ReloadOutcome.APPLIED, 1_700_000_000.5, changes), digest="d")
    assert document == {
        "outcome": "applied",
        "ended": "2023-11-14T22:13:20.500+00:00",
        "digest": "d",
        "changes": [
            {
                "path": "models.boots.max_batch_size",
                "kind": "changed",
                "text": "models.boots.max_batch_size: 32 -> 3",
                "consequence": "load",
                "built": [],
                "loaded": ["boots@dense"],
                "note": "",
            }
        ],
        "problems": [],
    }


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.FAILED_PRECONDITION, Code.FAILED_PRECONDITION),
        (Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT),
        # Not of the path that was asked for.
        (Code.NOT_FOUND, Code.INVALID_ARGUMENT),
        (Code.INTERNAL, Code.INTERNAL),
        (Code.DATA_LOSS, Code.INTERNAL),
    ],
)
def test_rejection_is_an_error_with_all_problems(code: Code, expected: Code) -> None:
    error = rejection(Reload(ReloadOutcome.REJECTED, 0.0, problems=("one", "two"), code=code))
    assert error is not None
    assert (error.code, error.message) == (expected, "config not applied: one\ntwo")


@pytest.mark.parametrize("outcome", [ReloadOutcome.APPLIED, ReloadOutcome.UNCHANGED])
def test_what_was_not_rejected_is_no_error(outcome: ReloadOutcome) -> None:
    assert rejection(Reload(outcome, 0.0)) is None


def test_digest_is_of_the_values_and_not_of_how_they_are_written(tmp_path: Path) -> None:
    plain = config_digest(config(tmp_path))
    assert config_digest(config(tmp_path, "# a comment\nserver: {http: '127.0.0.1:8080'}\n")) == plain
    assert config_digest(config(tmp_path, version="2")) != plain
    assert len(plain) == 64
