import pytest

from serveprune.errors import InvalidArgument
from serveprune.oip.parameters import byte_count, decode_parameters, flag


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
