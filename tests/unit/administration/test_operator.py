from typing import Any

import pytest

from serveprune.administration.operator import Operator, operator_of
from serveprune.errors import InvalidArgument


@pytest.mark.parametrize(
    ("fields", "operator"),
    [
        ({"who": "ada"}, Operator("ada", "")),
        ({"who": " Ada Lovelace ", "why": "it is Tuesday\n"}, Operator("Ada Lovelace", "it is Tuesday")),
        ({"who": "\u00c5sa@host", "why": "\u2026"}, Operator("\u00c5sa@host", "\u2026")),
        ({"who": "a" * 128, "why": "b" * 1024}, Operator("a" * 128, "b" * 1024)),
    ],
)
def test_operator_is_who_is_named(fields: dict[str, Any], operator: Operator) -> None:
    assert operator_of(fields, where="body") == operator


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "body: who: expected the name of the operator"),
        ({"who": ""}, "body: who: expected the name"),
        ({"who": "ada", "force": 1}, "body: expected no other keys than who and why, got 'force'"),
        ({"who": True}, "body: who: expected text"),
        ({"who": "ada", "why": ["x"]}, "body: why: expected text"),
        ({"who": "a" * 129}, "body: who: expected at most 128 characters, got 129"),
        ({"who": "a\nb"}, "body: who: expected one line"),
        ({"who": "a\x1b[2J"}, "body: who: expected one line"),
        ({"who": "a\u202eb"}, "body: who: expected one line"),
        ({"who": "a\ud800b"}, "body: who: expected one line"),
    ],
)
def test_operator_is_refused_when_something_else_stands_there(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        operator_of(fields, where="body")
    assert raised.value.message.startswith(message)


def test_name_may_be_left_out_where_it_is_not_needed() -> None:
    assert operator_of({}, where="body", needs_name=False) == Operator("", "")
