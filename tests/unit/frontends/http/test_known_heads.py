import pytest

from serveprune.frontends.http.known_heads import KnownHeads
from serveprune.frontends.http.request_headers import parse_headers
from serveprune.frontends.http.routes import HttpRoute, Operation

ROUTE = HttpRoute(Operation.INFER, "m")
HEADERS = parse_headers([(b"content-length", b"2")])
HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


def test_head_is_known_when_it_was_learned_on_its_second_time() -> None:
    heads = KnownHeads()

    assert heads.find(HEAD + b"{}") == (None, None)
    assert heads.find(HEAD + b"[]") == (None, HEAD)
    heads.learn(HEAD, ROUTE, HEADERS)

    known, new = heads.find(HEAD + b"{}")
    assert known is not None
    assert (known.route, known.headers, known.size_bytes, new) == (ROUTE, HEADERS, len(HEAD), None)
    assert heads.find(HEAD.replace(b"a", b"b") + b"{}") == (None, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n" + HEAD,
        HEAD[:-1],
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD.replace(b"Host: a", b"Host: " + b"a" * 4096),
    ],
)
def test_what_is_no_head_of_a_small_inference_is_never_to_be_learned(data: bytes) -> None:
    heads = KnownHeads()
    assert [heads.find(data) for _ in range(3)] == [(None, None)] * 3


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v2/models/m/infer HTTP/1.1\nContent-Length: 4\n\n\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 4\r\n\nab\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nno header at all\r\n\r\n",
        HEAD + b"x\r\n\r\n",
    ],
)
def test_head_of_which_the_parser_sees_another_end_is_not_learned(head: bytes) -> None:
    """Or else what one client sends as a body would be taken for a head."""
    heads = KnownHeads()
    heads.find(head)
    heads.learn(head, ROUTE, HEADERS)
    assert heads.find(head)[0] is None


def test_table_is_bounded_when_no_head_comes_twice() -> None:
    heads = KnownHeads(max_heads=4)
    for number in range(100):
        assert heads.find(HEAD.replace(b"a", b"%d" % number)) == (None, None)
        assert len(heads._known) <= 4


def test_head_is_forgotten_when_what_let_it_in_has_changed() -> None:
    heads = KnownHeads()
    for _ in range(2):
        heads.find(HEAD)
    heads.learn(HEAD, ROUTE, HEADERS)
    heads.forget()

    assert heads.find(HEAD + b"{}") == (None, None)
