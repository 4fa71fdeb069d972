import pytest

from serveprune.config.expansion import expanded

ENVIRONMENT = {"NAME": "value", "EMPTY": "", "NESTED": "${NAME}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${NAME}", "value"),
        ("a${NAME}b${NAME}", "avaluebvalue"),
        ("${NONE:-default}", "default"),
        ("${NONE:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("${NAME:-default}", "value"),
        ("${NONE:-a:-b}", "a:-b"),
        ("$${NAME}", "${NAME}"),
        ("$NAME $ $$ }", "$NAME $ $$ }"),
        # Values are not looked into again.
        ("${NESTED}", "${NAME}"),
    ],
)
def test_expanded_replaces_references(text: str, expected: str) -> None:
    assert expanded(text, environment=ENVIRONMENT) == expected


@pytest.mark.parametrize("text", ["${", "${}", "${NAME", "${1NAME}", "${NA ME}", "${NAME:default}", "x ${ä}"])
def test_expanded_is_refused_when_a_reference_is_malformed(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected \$\{NAME\} or \$\{NAME:-default\}"):
        expanded(text, environment=ENVIRONMENT)


def test_expanded_is_refused_when_the_variable_is_not_set() -> None:
    with pytest.raises(ValueError, match="expected the environment variable NONE to be set"):
        expanded("${NONE}", environment=ENVIRONMENT)
