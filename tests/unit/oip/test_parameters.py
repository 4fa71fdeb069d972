import pytest

from serveprune.errors import InvalidArgument
from serveprune.oip.parameters import byte_count, decode_parameters, finite_number, flag


def test_parameters_are_kept_when_they_are_scalars() -> None:
    sent = {"a": True, "b": 1, "c": 1.5, "d": "x"}

    assert decode_parameters(sent, where="parameters") == sent


@pytest.mark.parametrize("value", [{"a": []}, {"a": {}}, {"a": None}, [], "a", 1])
def test_parameters_are_refused_when_they_are_anything_else(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^parameters: expected"):
        decode_parameters(value, where="parameters")


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), (1.0, True), (0, False)])
def test_flag_is_a_boolean_or_the_number_of_one(value: object, expected: bool) -> None:
    assert flag(value, where="f") is expected


@pytest.mark.parametrize("value", ["true", None, 2, 0.5, float("nan"), []])
def test_flag_is_refused_when_it_is_anything_else(value: object) -> None:
    with pytest.raises(InvalidArgument, match="expected true or false"):
        flag(value, where="f")


@pytest.mark.parametrize("value", [-1, 1.5, True, "1", None, float("inf"), float("nan")])
def test_byte_count_is_refused_when_it_is_no_whole_number(value: object) -> None:
    with pytest.raises(InvalidArgument, match="expected a whole number of bytes"):
        byte_count(value, where="f")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), ("0.5", 0.5), (" 5e1 ", 50.0), ("-3", -3.0), (-(2**63), -(2.0**63))],
)
def test_number_is_read_from_numbers_and_text(value: object, expected: float) -> None:
    assert finite_number(value, where="f") == expected


@pytest.mark.parametrize(
    "value", [True, None, [], "", "five", "1_000", "0x10", "nan", "-inf", "1e999", float("nan"), "1" * 41, 10**400]
)
def test_number_is_refused_when_it_is_anything_else(value: object) -> None:
    with pytest.raises(InvalidArgument, match="f: expected a finite number, got"):
        finite_number(value, where="f")
