import pytest

from serveprune.administration.http_routes import AdminRoute, find_admin_route
from serveprune.administration.operation import AdminOperation
from serveprune.errors import InvalidArgument
from serveprune.frontends.http.errors import MethodNotAllowed, NoSuchPath


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", b"/admin/config", AdminRoute(AdminOperation.CONFIG)),
        ("POST", b"/admin/config/reload/", AdminRoute(AdminOperation.RELOAD)),
        ("HEAD", b"/admin/rollouts", AdminRoute(AdminOperation.ROLLOUTS)),
        ("GET", b"/admin/rollouts/changes", AdminRoute(AdminOperation.CHANGES)),
        ("GET", b"/admin/rollouts/mini%6Cm", AdminRoute(AdminOperation.ROLLOUT, "minilm")),
        ("POST", b"/admin/rollouts/changes/pause", AdminRoute(AdminOperation.PAUSE, "changes")),
        ("POST", b"/admin/rollouts/m/resume", AdminRoute(AdminOperation.RESUME, "m")),
        ("POST", b"/admin/rollouts/m/promote", AdminRoute(AdminOperation.PROMOTE, "m")),
        ("POST", b"/admin/rollouts/m/abort", AdminRoute(AdminOperation.ABORT, "m")),
    ],
)
def test_path_finds_its_operation(method: str, path: bytes, route: AdminRoute) -> None:
    assert find_admin_route(method, path, b"") == route


@pytest.mark.parametrize("path", [b"", b"/", b"/admin", b"/admin/rollouts//abort", b"/ADMIN/config", b"/admin//config"])
def test_other_path_is_none(path: bytes) -> None:
    with pytest.raises(NoSuchPath):
        find_admin_route("GET", path, b"")


def test_what_changes_something_is_no_get() -> None:
    with pytest.raises(MethodNotAllowed) as raised:
        find_admin_route("GET", b"/admin/rollouts/m/abort", b"")
    assert raised.value.allowed == ("POST",)


def test_query_and_broken_name_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no query"):
        find_admin_route("GET", b"/admin/config", b"verbose")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        find_admin_route("GET", b"/admin/rollouts/%FF", b"")
