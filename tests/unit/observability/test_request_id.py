import pytest

from serveprune.observability.request_id import accepted_id, new_id


@pytest.mark.parametrize("text", ["a", "7f3c-11", "x" * 128, "a/b:c+d=e.f_g@h~i", "1" * 36])
def test_id_of_a_client_is_taken_when_it_is_short_and_plain(text: str) -> None:
    assert accepted_id(text) == text


@pytest.mark.parametrize(
    "text", [None, "", "x" * 129, "a b", "a\nb", "a\r\nset-cookie: x", 'a"b', "a,b", "é", "\x1b[31m", "a\x00", "a\n"]
)
def test_id_of_a_client_is_left_when_it_could_break_a_header_or_a_line(text: str | None) -> None:
    assert accepted_id(text) is None


def test_made_ids_are_taken_as_they_are_and_differ() -> None:
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    assert all(accepted_id(each) == each for each in made)
