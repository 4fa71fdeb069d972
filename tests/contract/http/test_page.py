"""The page at ``/ui`` over HTTP: its files, its document, its way to the admin API."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.administered import STRANGE, TOKEN, Administered, administered
from contract.http.served import read_answer, serve
from contract.numpy_plane import SECRET, NumpyPlane
from serveprune.config.security import TokensConfig
from serveprune.config.server import ServerConfig
from serveprune.errors import Unavailable
from serveprune.frontends.authorization import Authorization, watched_tokens
from serveprune.frontends.http.operator_call import AskOperators, OperatorAnswer, OperatorCall
from serveprune.frontends.http.server import HttpFrontend

CLIENTS_TOKEN = "a-token-of-clients-0001"
FILES = sorted(
    file.name for file in (Path(__file__).resolve().parents[3] / "serveprune" / "frontends" / "http" / "ui").iterdir()
)


class Told:
    """What the page shows here; counts how often it was made."""

    def __init__(self) -> None:
        self.made = 0
        self.may_make = threading.Event()
        self.may_make.set()
        self.failure: Exception | None = None

    def document(self) -> dict[str, Any]:
        assert self.may_make.wait(20)
        if self.failure is not None:
            raise self.failure
        self.made += 1
        return {"made": self.made, "name": "<script>alert(1)</script>"}


@contextlib.contextmanager
def page(
    told: Told, *, tokens: TokensConfig | None = None, ask_operators: AskOperators | None = None
) -> Iterator[httpx.Client]:
    plane = NumpyPlane()
    known = watched_tokens(tokens, environment=os.environ) if tokens is not None else None
    frontend = HttpFrontend(
        plane,
        plane,
        config=ServerConfig.model_validate({"http": "127.0.0.1:0"}),
        on_rejected=lambda code: None,
        authorization=Authorization(known) if known is not None else None,
        page_data=told,
        ask_operators=ask_operators,
    )
    address = frontend.start()
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=20, trust_env=False) as client:
            yield client
    finally:
        frontend.stop(drain_seconds=5)
        plane.close()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def client(told: Told) -> Iterator[httpx.Client]:
    with page(told) as client:
        yield client


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[Administered]:
    with administered(tmp_path) as running:
        yield running


def expect_guarded(answer: httpx.Response) -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"


def test_page_is_a_folder_whose_files_are_found_from_it(client: httpx.Client) -> None:
    answer = client.get("/ui")
    assert (answer.status_code, answer.headers["location"]) == (308, "ui/")
    expect_guarded(answer)
    shown = client.get("/ui", follow_redirects=True)
    assert shown.url.path == "/ui/"
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert 'src="main.js"' in shown.text


@pytest.mark.parametrize("name", FILES)
def test_file_is_sent_with_its_type_and_is_not_sent_twice(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/ui/{name}")

    assert answer.status_code == 200
    kind = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].partition(";")[0] == kind[Path(name).suffix]
    assert answer.headers["cache-control"] == "no-cache"
    expect_guarded(answer)
    for tag in (answer.headers["etag"], f'"another", W/{answer.headers["etag"]}'):
        again = client.get(f"/ui/{name}", headers={"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
        expect_guarded(again)
    assert client.get(f"/ui/{name}", headers={"If-None-Match": '"another"'}).status_code == 200
    head = client.head(f"/ui/{name}")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "path",
    ["/ui/nothing.js", "/ui/../page.py", "/ui/%2e%2e/page.py", "/ui//", "/ui/admin/config", "/uix", "/ui/\u00e4"],
)
def test_path_is_404_when_nothing_is_there(client: httpx.Client, path: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}
    if answer.request.url.raw_path.startswith(b"/ui/"):
        expect_guarded(answer)


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/main.js", "/ui/state"])
def test_page_is_read_only(client: httpx.Client, path: str) -> None:
    answer = client.post(path, content=b"{}")

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_document_is_json_that_nobody_keeps(client: httpx.Client) -> None:
    answer = client.get("/ui/state")

    assert answer.json()["name"] == "<script>alert(1)</script>"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    expect_guarded(answer)


def test_document_is_made_once_for_all_who_ask_at_the_same_time(told: Told, client: httpx.Client) -> None:
    told.may_make.clear()
    with ThreadPoolExecutor(8) as callers:
        answers = [callers.submit(client.get, "/ui/state") for _ in range(8)]
        # Nothing else waits for it.
        assert client.get("/v2/health/live").status_code == 200
        told.may_make.set()
        assert {answer.result(20).json()["made"] for answer in answers} == {1}


def test_document_that_cannot_be_made_is_an_error_that_tells_nothing(told: Told, client: httpx.Client) -> None:
    told.failure = ValueError(f"cannot read {SECRET}")

    answer = client.get("/ui/state")

    assert answer.status_code == 500
    assert SECRET not in answer.text
    expect_guarded(answer)
    assert answer.headers["cache-control"] == "no-store"


def test_there_is_no_page_without_its_data() -> None:
    with serve() as served:
        for path in ("/ui", "/ui/", "/ui/main.js", "/ui/state"):
            assert served.client.get(path).status_code == 404


def test_document_needs_a_token_and_the_files_need_none(told: Told, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(CLIENTS_TOKEN)
    with page(told, tokens=TokensConfig(file=file)) as client:
        for name in FILES:
            assert client.get(f"/ui/{name}").status_code == 200
        for headers in ({}, {"Authorization": f"Bearer {STRANGE}"}):
            answer = client.get("/ui/state", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            expect_guarded(answer)
        assert told.made == 0
        assert client.get("/ui/state", headers={"Authorization": f"Bearer {CLIENTS_TOKEN}"}).status_code == 200


def test_operators_act_through_the_page_as_on_their_own_port(told: Told, operated: Administered) -> None:
    operated.tick(now=0.0)
    with page(told, ask_operators=operated.admin.relay.ask) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        with operated.client() as direct:
            for path in ("config", "rollouts", "rollouts/fashion", "rollouts/nobody", "nothing", "rollouts?x=1"):
                through, own = client.get(f"/ui/admin/{path}"), direct.get(f"/admin/{path}")
                assert (through.status_code, through.json()) == (own.status_code, own.json())
                assert through.headers["cache-control"] == "no-store"
                expect_guarded(through)
        paused = client.post("/ui/admin/rollouts/fashion/pause", json={"who": "ada", "why": "größer?"})
        assert (paused.status_code, paused.json()["phase"]) == (200, "paused")
        assert client.post("/ui/admin/rollouts/fashion/pause", json={"who": "ada"}).status_code == 409
        assert client.post("/ui/admin/rollouts/fashion/pause", content=b"{").status_code == 400
        assert client.post("/ui/admin/rollouts/fashion/pause", content=b" " * 70_000).status_code == 413
    noted = [line for line in operated.audit() if line["event"] == "request"]
    assert [(line["who"], line["why"], line["code"]) for line in noted[:1]] == [("ada", "größer?", "OK")]
    assert noted[0]["peer"].startswith("127.0.0.1:")


def test_operators_token_is_what_counts_there(told: Told, operated: Administered, tmp_path: Path) -> None:
    file = tmp_path / "clients"
    file.write_text(CLIENTS_TOKEN)
    operated.tick(now=0.0)
    with page(told, tokens=TokensConfig(file=file), ask_operators=operated.admin.relay.ask) as client:
        for token in (None, CLIENTS_TOKEN, STRANGE):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            for method, path in (("GET", "config"), ("POST", "rollouts/fashion/abort"), ("GET", "nothing")):
                answer = client.request(method, f"/ui/admin/{path}", headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/ui/admin/config", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert operated.rollouts is not None
    assert operated.rollouts.status("fashion")[0]["phase"] != "aborted"
    refused = [line["asked"] for line in operated.audit() if line["event"] == "refusal"]
    assert refused[:2] == ["GET /admin/config", "POST /admin/rollouts/fashion/abort"]
    assert STRANGE not in f"{operated.audit()}"


def test_body_of_a_call_without_a_token_is_not_awaited(told: Told, operated: Administered) -> None:
    with page(told, ask_operators=operated.admin.relay.ask) as client:
        # Says that more comes, and sends nothing; with a token that would be waited for.
        head = b"POST /ui/admin/config/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as connection:
            connection.sendall(head)
            assert read_answer(connection).status == 401


def test_call_of_an_operator_is_503_while_nobody_can_answer_it(told: Told) -> None:
    def nobody(call: OperatorCall) -> "Future[OperatorAnswer]":
        raise Unavailable("the admin API is not open yet, or no more", retry_after_seconds=1.0)

    with page(told, ask_operators=nobody) as client:
        answer = client.get("/ui/admin/config")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_calls_of_operators_that_wait_are_bounded(told: Told, operated: Administered) -> None:
    operated.may_apply.clear()
    operated.write_config(models={"other": {"source": {"onnx": "relu.onnx"}}})
    with page(told, ask_operators=operated.admin.relay.ask) as client, ThreadPoolExecutor(40) as callers:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        asked = [callers.submit(client.post, "/ui/admin/config/reload", headers=headers) for _ in range(40)]
        # Of so many some are refused at once, and none is answered before the config may be applied.
        refused = next(as_completed(asked, timeout=20)).result()
        assert refused.status_code == 429
        assert "wait" in refused.json()["error"]
        operated.may_apply.set()
        statuses = [answer.result(20).status_code for answer in asked]
    assert statuses.count(200) >= 1
    assert set(statuses) <= {200, 429}
