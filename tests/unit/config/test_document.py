import pytest

from serveprune.config.document import parse_document


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("FALSE", False),
        ("~", None),
        ("Null", None),
        ("", None),
        ("12", 12),
        ("-012", -12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-.INF", float("-inf")),
        ("2026-11-23", "2026-11-23"),
        ("1.2.3", "1.2.3"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_does(text: str, expected: object) -> None:
    document = parse_document(f"key: {text}\n", environment={})
    assert document.problems == ()
    assert document.data == {"key": expected}
    assert type(document.data["key"]) is type(expected)


def test_lines_are_those_of_keys_and_of_list_entries() -> None:
    text = "a:\n  b: 1\n  c:\n    - x\n    - d: 2\nf: >\n  folded\n  text\n"
    document = parse_document(text, environment={})
    assert document.data == {"a": {"b": 1, "c": ["x", {"d": 2}]}, "f": "folded text\n"}
    assert {path: document.line(path) for path in document.lines} == {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", 0): 4,
        ("a", "c", 1): 5,
        ("a", "c", 1, "d"): 5,
        ("f",): 6,
    }
    assert document.line(("a", "c", 1, "not there", "at all")) == 5


def test_merged_keys_give_way_to_own_ones_and_earlier_ones_to_none() -> None:
    text = """\
base: &base {a: base, b: base}
more: &more {b: more, c: more}
own:
  <<: [*base, *more]
  a: own
"""
    document = parse_document(text, environment={})
    assert document.problems == ()
    assert document.data["own"] == {"a": "own", "b": "base", "c": "more"}
    assert document.line(("own", "a")) == 5
    assert document.line(("own", "c")) == 2


def test_values_of_an_alias_have_the_lines_of_the_anchor() -> None:
    document = parse_document("a: &shared\n  x: 1\nb: *shared\n", environment={})
    assert document.line(("b",)) == 3
    assert document.line(("b", "x")) == 2


def test_all_that_is_wrong_is_reported_and_the_rest_is_read() -> None:
    document = parse_document("a: !x 1\nb: ${NONE}\nc: 1\nc: 2\n3: d\n", environment={})
    assert document.data == {"a": None, "b": None, "c": 1, "3": "d"}
    assert [(problem.line, problem.path) for problem in document.problems] == [
        (1, ("a",)),
        (2, ("b",)),
        (4, ("c",)),
        (5, ("3",)),
    ]
