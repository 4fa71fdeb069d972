import pytest

from serveprune.errors import InvalidArgument
from serveprune.frontends.http.errors import MethodNotAllowed, NoSuchPath
from serveprune.frontends.http.routes import HttpRoute, Operation, find_route


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", b"/v2", HttpRoute(Operation.SERVER_METADATA)),
        ("GET", b"/v2/", HttpRoute(Operation.SERVER_METADATA)),
        ("HEAD", b"/v2", HttpRoute(Operation.SERVER_METADATA)),
        ("GET", b"/v2/health/live", HttpRoute(Operation.LIVE)),
        ("GET", b"/v2/health/ready", HttpRoute(Operation.READY)),
        ("POST", b"/v2/repository/index", HttpRoute(Operation.REPOSITORY_INDEX)),
        ("POST", b"/v2/repository/models/m/load", HttpRoute(Operation.LOAD, "m")),
        ("POST", b"/v2/repository/models/%2e%2e/unload", HttpRoute(Operation.UNLOAD, "..")),
        ("GET", b"/v2/models/m", HttpRoute(Operation.MODEL_METADATA, "m")),
        ("GET", b"/v2/models/m/", HttpRoute(Operation.MODEL_METADATA, "m")),
        ("GET", b"/v2/models/m/ready", HttpRoute(Operation.MODEL_READY, "m")),
        ("GET", b"/v2/models/m/tiers", HttpRoute(Operation.TIERS, "m")),
        ("POST", b"/v2/models/m/infer", HttpRoute(Operation.INFER, "m")),
        ("GET", b"/v2/models/m/versions/7", HttpRoute(Operation.MODEL_METADATA, "m", "7")),
        ("GET", b"/v2/models/m/versions/7/ready", HttpRoute(Operation.MODEL_READY, "m", "7")),
        ("POST", b"/v2/models/m/versions/7/infer", HttpRoute(Operation.INFER, "m", "7")),
        ("GET", b"/v2/models/m/versions/7/tiers", HttpRoute(Operation.TIERS, "m", "7")),
        ("POST", b"/v2/models/m@int8/infer", HttpRoute(Operation.INFER, "m@int8")),
        ("POST", b"/v2/models/m%40int8/infer", HttpRoute(Operation.INFER, "m@int8")),
        ("POST", b"/v2/models/a%2Fb/infer", HttpRoute(Operation.INFER, "a/b")),
        ("POST", b"/v2/models/gr%C3%B6%C3%9Fe/infer", HttpRoute(Operation.INFER, "größe")),
        ("GET", b"/v2/models/versions", HttpRoute(Operation.MODEL_METADATA, "versions")),
    ],
)
def test_path_leads_to_its_operation(method: str, path: bytes, expected: HttpRoute) -> None:
    assert find_route(method, path) == expected


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"/v1/models/m:predict",
        b"/v2x",
        b"v2",
        b"//v2",
        b"/v2//",
        b"/v2/models",
        b"/v2/models/",
        b"/v2/models//infer",
        b"/v2/models/m/versions",
        b"/v2/models/m/versions//infer",
        b"/v2/models/m/infer/more",
        b"/v2/health",
        b"/v2/health/dead",
        b"/v2/repository/index/x",
    ],
)
def test_path_is_unknown_when_the_protocol_has_none_like_it(path: bytes) -> None:
    with pytest.raises(NoSuchPath, match="no such path"):
        find_route("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", b"/v2", ("GET", "HEAD")),
        ("DELETE", b"/v2/health/live", ("GET", "HEAD")),
        ("POST", b"/v2/models/m/tiers", ("GET", "HEAD")),
        ("GET", b"/v2/models/m/infer", ("POST",)),
        ("OPTIONS", b"/v2/models/m/infer", ("POST",)),
        ("GET", b"/v2/repository/index", ("POST",)),
    ],
)
def test_method_is_refused_when_the_path_has_others(method: str, path: bytes, allowed: tuple[str, ...]) -> None:
    with pytest.raises(MethodNotAllowed) as refusal:
        find_route(method, path)
    assert refusal.value.allowed == allowed


def test_name_is_refused_when_it_is_no_utf8() -> None:
    with pytest.raises(InvalidArgument, match="UTF-8"):
        find_route("GET", b"/v2/models/%FF")
