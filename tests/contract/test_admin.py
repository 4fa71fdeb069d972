"""The admin API over both protocols: the same operations, the same errors, and a token before anything else."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from contract.administered import CANARY, STRANGE, TOKEN, Administered, administered
from contract.certificates import Authority
from contract.http.served import RawAnswer, post, read_answer
from serveprune.administration.grpc_endpoint import MAX_MESSAGE_BYTES
from serveprune.config.security import TlsConfig
from serveprune.errors import FailedPrecondition, Internal
from serveprune.frontends.grpc.pb import serveprune_admin_pb2 as pb
from serveprune.frontends.grpc.pb.serveprune_admin_pb2_grpc import AdminServiceStub
from serveprune.frontends.http.operator_bodies import MAX_BODY_BYTES

ADA = {"who": "ada", "why": "it looks good"}
SHOWN = (("authorization", f"Bearer {TOKEN}"),)
READ = ("/admin/config", "/admin/rollouts", "/admin/rollouts/fashion", "/admin/rollouts/changes")
WRITTEN = (
    "/admin/config/reload",
    *(f"/admin/rollouts/fashion/{act}" for act in ("pause", "resume", "promote", "abort")),
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Administered]:
    with administered(tmp_path) as running:
        yield running


@pytest.fixture
def client(served: Administered) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture
def stub(served: Administered) -> Iterator[Any]:
    with served.stub() as stub:
        yield stub


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    return error.code(), error.details()


def error_of(answer: httpx.Response) -> tuple[int, str]:
    document = answer.json()
    assert set(document) == {"error"}
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, document["error"]


def move(model: str = "fashion", *, who: str = "ada", why: str = "") -> Any:
    return pb.MoveRolloutRequest(model=model, who=who, why=why)


WITHOUT = {
    "absent": None,
    "wrong": f"Bearer {STRANGE}",
    "part": f"Bearer {TOKEN[:-1]}",
    "more": f"Bearer {TOKEN}x",
    "scheme": f"Basic {TOKEN}",
    "bare": TOKEN,
    "empty": "Bearer",
}


@pytest.mark.parametrize("shown", WITHOUT.values(), ids=WITHOUT)
def test_nothing_is_told_and_nothing_done_without_a_token(served: Administered, shown: str | None) -> None:
    served.tick(now=0)
    headers = {} if shown is None else {"Authorization": shown}
    with served.client(None) as client:
        for path in (*READ, "/admin", "/admin/nothing", "/", "/admin/rollouts/fashion?x=1"):
            answer = client.get(path, headers=headers)
            assert error_of(answer)[0] == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in WRITTEN:
            assert error_of(client.post(path, json=ADA, headers=headers))[0] == 401
            assert error_of(client.post(path, content=b"{", headers=headers))[0] == 401
    metadata = () if shown is None else (("authorization", shown),)
    with served.stub() as stub:
        for call in (
            lambda: stub.GetConfig(pb.GetConfigRequest(), metadata=metadata),
            lambda: stub.ReloadConfig(pb.ReloadConfigRequest(), metadata=metadata),
            lambda: stub.ListRollouts(pb.ListRolloutsRequest(), metadata=metadata),
            lambda: stub.GetRollout(pb.GetRolloutRequest(model="nobody"), metadata=metadata),
            lambda: stub.ListRolloutChanges(pb.ListRolloutChangesRequest(), metadata=metadata),
            *(
                lambda method=method: getattr(stub, method)(move(), metadata=metadata)
                for method in ("PauseRollout", "ResumeRollout", "PromoteRollout", "AbortRollout")
            ),
        ):
            assert refusal(call)[0] is grpc.StatusCode.UNAUTHENTICATED
    assert served.rollouts is not None
    assert served.rollouts.status("fashion")[0]["phase"] == "progressing"
    assert served.applied == []
    assert served.looks == 0


def test_refused_calls_are_noted_without_what_they_showed(
    served: Administered, caplog: pytest.LogCaptureFixture
) -> None:
    with served.client(STRANGE) as client, served.stub() as stub:
        client.post("/admin/rollouts/fashion/abort", json=ADA)
        refusal(lambda: stub.AbortRollout(move(), metadata=(("authorization", f"Bearer {STRANGE}"),)))

    lines = [line for line in served.audit() if line["event"] == "refusal"]
    assert [(line["protocol"], line["asked"], line["code"]) for line in lines] == [
        ("http", "POST /admin/rollouts/fashion/abort", "UNAUTHENTICATED"),
        ("grpc", "serveprune.admin.v1.AdminService/AbortRollout", "UNAUTHENTICATED"),
    ]
    assert all(line["peer"].startswith("127.0.0.1:") for line in lines)
    assert STRANGE not in json.dumps(lines) + caplog.text
    assert served.counted("unknown", "UNAUTHENTICATED") == 2


def test_many_refused_calls_do_not_fill_the_audit_log(served: Administered) -> None:
    with served.client(None) as client:
        for _ in range(100):
            client.get("/admin/config")
    assert len(served.audit()) == 30
    assert served.counted("unknown", "UNAUTHENTICATED") == 100


def test_body_is_not_awaited_without_a_token(served: Administered) -> None:
    with socket.create_connection(served.endpoints.http, timeout=20) as connection:
        connection.sendall(post("/admin/config/reload", b"", length=60_000))
        assert read_answer(connection).status == 401


def test_changed_tokens_count_within_seconds(served: Administered, client: httpx.Client) -> None:
    assert client.get("/admin/config").status_code == 200
    served.token_file.write_text(STRANGE)
    deadline = time.monotonic() + 20
    while client.get("/admin/config").status_code != 401 and time.monotonic() < deadline:
        time.sleep(0.05)
    with served.client(STRANGE) as other:
        assert other.get("/admin/config").status_code == 200


def test_rollouts_are_told_alike_over_both_protocols(served: Administered, client: httpx.Client, stub: Any) -> None:
    served.tick(now=0)
    served.tick(now=1, answered=20)
    served.tick(now=2, answered=20)

    (told,) = client.get("/admin/rollouts").json()["rollouts"]
    assert client.get("/admin/rollouts/fashion").json() == told
    assert client.get("/admin/rollouts/fashion/").json() == told
    assert (told["model"], told["canary"], told["phase"], told["canary_percent"]) == (
        "fashion",
        "int8",
        "progressing",
        20,
    )
    assert told["guards"][0] == {
        "guard": "max_error_ratio",
        "verdict": "ok",
        "figures": "error ratio 0 (0 of 40), limit 0.01",
    } | {"figures": told["guards"][0]["figures"]}
    assert "0 of 40" in told["guards"][0]["figures"]
    assert len(told["steps"]) == len(CANARY["steps"])
    said = stub.GetRollout(pb.GetRolloutRequest(model="fashion"), metadata=SHOWN)
    (listed,) = stub.ListRollouts(pb.ListRolloutsRequest(), metadata=SHOWN).rollouts
    assert listed == said
    assert MessageToDict(said, preserving_proto_field_name=True, always_print_fields_with_no_presence=True) == _present(
        told
    )


def _present(document: Any) -> Any:
    """Return a document as the messages have it: what is null is absent, and Argo's word is not ours."""
    if isinstance(document, list):
        return [_present(each) for each in document]
    if isinstance(document, dict):
        renamed = {"set_weight" if key == "setWeight" else key: value for key, value in document.items()}
        return {key: _present(value) for key, value in renamed.items() if value is not None}
    return document


def test_every_key_of_a_rollout_and_a_change_is_in_the_messages(served: Administered, client: httpx.Client) -> None:
    waiting = client.get("/admin/rollouts/fashion").json()
    served.tick(now=0)
    told = client.get("/admin/rollouts/fashion").json()
    assert set(waiting) == set(told) == set(pb.Rollout.DESCRIPTOR.fields_by_name)
    change = client.get("/admin/rollouts/changes").json()["changes"][0]
    assert set(change) == set(pb.RolloutChange.DESCRIPTOR.fields_by_name)
    config = client.get("/admin/config").json()
    assert set(config) == set(pb.ConfigStatus.DESCRIPTOR.fields_by_name)


def test_changes_tell_what_happened_the_oldest_first(served: Administered, client: httpx.Client, stub: Any) -> None:
    served.tick(now=0)
    client.post("/admin/rollouts/fashion/pause", json=ADA)

    changes = client.get("/admin/rollouts/changes").json()["changes"]
    assert [(change["kind"], change["who"]) for change in changes][-1] == ("paused", "ada")
    assert changes[0]["kind"] == "canary_ready"
    said = stub.ListRolloutChanges(pb.ListRolloutChangesRequest(), metadata=SHOWN).changes
    assert [change.text for change in said] == [change["text"] for change in changes]
    assert [change.HasField("who") for change in said] == [change["who"] is not None for change in changes]


def test_head_is_answered_like_get(client: httpx.Client) -> None:
    answer = client.head("/admin/rollouts")
    assert (answer.status_code, answer.content) == (200, b"")


def test_acts_move_the_rollout_and_are_noted(served: Administered, client: httpx.Client, stub: Any) -> None:
    served.tick(now=0)
    paused = client.post("/admin/rollouts/fashion/pause", json=ADA)
    assert paused.status_code == 200
    assert (paused.json()["phase"], paused.json()["reason"]) == ("paused", "paused by ada")
    resumed = stub.ResumeRollout(move(who="bob", why="lunch is over"), metadata=SHOWN)
    assert (resumed.phase, resumed.who) == ("progressing", "bob")
    promoted = client.post("/admin/rollouts/fashion/promote", json={"who": "ada"})
    assert (promoted.json()["phase"], promoted.json()["canary_percent"]) == ("promoted", 100)
    aborted = stub.AbortRollout(move(why="customers complain"), metadata=SHOWN)
    assert (aborted.phase, aborted.canary_percent) == ("aborted", 0)
    assert aborted.reason == "aborted by ada: customers complain"
    assert served.looks == 4

    noted = [line for line in served.audit() if line["event"] == "request"]
    assert [(line["operation"], line["model"], line["who"], line["why"], line["code"]) for line in noted] == [
        ("rollout.pause", "fashion", "ada", "it looks good", "OK"),
        ("rollout.resume", "fashion", "bob", "lunch is over", "OK"),
        ("rollout.promote", "fashion", "ada", "", "OK"),
        ("rollout.abort", "fashion", "ada", "customers complain", "OK"),
    ]
    assert all(line["peer"].startswith("127.0.0.1:") for line in noted)
    happened = [line["kind"] for line in served.audit() if line["event"] == "rollout"]
    assert happened[-4:] == ["paused", "resumed", "promoted", "aborted"]
    assert TOKEN not in json.dumps(served.audit())
    assert served.counted("rollout.promote", "OK") == 1


def test_act_that_does_not_fit_is_409_and_noted(served: Administered, client: httpx.Client, stub: Any) -> None:
    waits = client.post("/admin/rollouts/fashion/promote", json=ADA)
    assert error_of(waits)[0] == 409
    assert "waits for int8 to be built" in waits.json()["error"]
    served.tick(now=0)
    status, message = error_of(client.post("/admin/rollouts/fashion/resume", json=ADA))
    assert status == 409
    assert "expected a paused rollout" in message
    code, details = refusal(lambda: stub.ResumeRollout(move(), metadata=SHOWN))
    assert (code, details) == (grpc.StatusCode.FAILED_PRECONDITION, message)
    noted = [line for line in served.audit() if line["event"] == "request"]
    assert [line["code"] for line in noted] == ["FAILED_PRECONDITION"] * 3
    assert served.looks == 0
    assert served.counted("rollout.resume", "FAILED_PRECONDITION") == 2


def test_unknown_model_is_404(client: httpx.Client, stub: Any) -> None:
    for answer in (client.get("/admin/rollouts/nobody"), client.post("/admin/rollouts/nobody/pause", json=ADA)):
        status, message = error_of(answer)
        assert status == 404
        assert "'nobody'" in message
        assert "fashion" in message
    assert refusal(lambda: stub.GetRollout(pb.GetRolloutRequest(model="nobody"), metadata=SHOWN)) == (
        grpc.StatusCode.NOT_FOUND,
        message,
    )
    assert refusal(lambda: stub.PauseRollout(move("nobody"), metadata=SHOWN))[0] is grpc.StatusCode.NOT_FOUND


def test_server_without_rollouts_says_so(served: Administered, client: httpx.Client) -> None:
    assert served.rollouts is not None
    served.rollouts.close()
    served.rollouts = None
    assert client.get("/admin/rollouts").json() == {"rollouts": []}
    assert client.get("/admin/rollouts/changes").json() == {"changes": []}
    assert error_of(client.get("/admin/rollouts/fashion"))[0] == 404
    assert error_of(client.post("/admin/rollouts/fashion/pause", json=ADA))[0] == 404


MALFORMED = {
    "no JSON": (b"{", "expected JSON"),
    "nothing": (b"", "expected JSON"),
    "no UTF-8": (b'{"who": "\xff"}', "expected JSON"),
    "a list": (b"[]", "expected a JSON object"),
    "an unknown key": (b'{"who": "ada", "force": true}', "'force'"),
    "nobody": (b"{}", "who: expected the name"),
    "an empty name": (b'{"who": "  "}', "who: expected the name"),
    "a number for a name": (b'{"who": 1}', "who: expected text"),
    "null for a reason": (b'{"who": "ada", "why": null}', "why: expected text"),
    "two lines": (b'{"who": "ada\\nroot"}', "who: expected one line"),
    "orders to a terminal": (b'{"who": "ada", "why": "\\u001b[2J"}', "why: expected one line"),
    "a name too long": (json.dumps({"who": "a" * 129}).encode(), "who: expected at most 128"),
    "a reason too long": (json.dumps({"who": "a", "why": "b" * 1025}).encode(), "why: expected at most 1024"),
}


@pytest.mark.parametrize(("body", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_body_is_400(served: Administered, client: httpx.Client, body: bytes, message: str) -> None:
    served.tick(now=0)
    status, said = error_of(client.post("/admin/rollouts/fashion/abort", content=body))
    assert status == 400
    assert message in said
    assert client.get("/admin/rollouts/fashion").json()["phase"] == "progressing"


def test_malformed_message_is_an_invalid_argument(served: Administered, stub: Any) -> None:
    served.tick(now=0)
    for request, message in (
        (move(who=""), "who: expected the name"),
        (move(who="ada\nroot"), "who: expected one line"),
        (move(why="b" * 1025), "why: expected at most 1024"),
        (pb.MoveRolloutRequest.FromString(move().SerializeToString() + b"\x98\x06\x01"), "unknown field 99"),
    ):
        code, details = refusal(partial(stub.AbortRollout, request, metadata=SHOWN))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message in details
    with grpc.insecure_channel(str(served.endpoints.grpc), options=[("grpc.enable_http_proxy", 0)]) as channel:
        raw = channel.unary_unary("/serveprune.admin.v1.AdminService/AbortRollout")
        assert refusal(lambda: raw(b"\xff\xff", metadata=SHOWN))[0] is grpc.StatusCode.INVALID_ARGUMENT
        none = channel.unary_unary("/serveprune.admin.v1.AdminService/Nothing")
        assert refusal(lambda: none(b"", metadata=SHOWN))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert served.counted("rollout.abort", "INVALID_ARGUMENT") == 5


def test_body_too_large_is_413(served: Administered, client: httpx.Client, stub: Any) -> None:
    large = json.dumps({"who": "ada", "why": "b" * MAX_BODY_BYTES})
    status, message = error_of(client.post("/admin/rollouts/fashion/pause", content=large))
    assert (status, message) == (413, f"body: expected at most {MAX_BODY_BYTES} bytes, got more")
    assert error_of(client.post("/admin/config/reload", content=large))[0] == 413
    code, _ = refusal(lambda: stub.PauseRollout(move(why="b" * MAX_MESSAGE_BYTES), metadata=SHOWN))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def chunked(*chunks: bytes) -> bytes:
    head = "POST /admin/rollouts/fashion/pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode() + body + b"0\r\n\r\n"


def raw(served: Administered, request: bytes) -> RawAnswer:
    with socket.create_connection(served.endpoints.http, timeout=20) as connection:
        connection.sendall(request)
        return read_answer(connection)


def test_body_in_chunks_counts_as_one(served: Administered) -> None:
    served.tick(now=0)
    assert raw(served, chunked(b'{"who":', b' "ada"}')).status == 200
    assert raw(served, chunked(*([b" " * 8192] * 9))).status == 413


def test_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    with administered(tmp_path, body_timeout_seconds=0.2) as served:
        shown = {"Authorization": f"Bearer {TOKEN}"}
        answer = raw(served, post("/admin/rollouts/fashion/pause", b'{"wh', length=100, headers=shown))
        assert answer.status == 408


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        *(("POST", path, "GET, HEAD") for path in READ),
        *(("DELETE", path, "GET, HEAD") for path in READ),
        *(("GET", path, "POST") for path in WRITTEN),
        *(("PUT", path, "POST") for path in WRITTEN),
    ],
)
def test_other_method_is_405(client: httpx.Client, method: str, path: str, allow: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "path",
    ["/", "/admin", "/admin/", "/admin/configs", "/admin/config/load", "/admin/rollouts/fashion/kill", "/v2",
     "/admin/rollouts//pause", "/admin/rollouts/fashion/pause/now", "/metrics"],
)  # fmt: skip
def test_other_path_is_404(client: httpx.Client, path: str) -> None:
    assert error_of(client.get(path))[0] == 404


def test_query_is_refused_for_it_would_be_ignored(served: Administered, client: httpx.Client) -> None:
    served.tick(now=0)
    assert error_of(client.post("/admin/rollouts/fashion/abort?dry_run=1", json=ADA))[0] == 400
    assert error_of(client.get("/admin/rollouts?model=fashion"))[0] == 400
    assert client.get("/admin/rollouts/fashion").json()["phase"] == "progressing"


def test_name_in_the_path_may_be_percent_encoded(client: httpx.Client) -> None:
    assert client.get("/admin/rollouts/f%61shion").json()["model"] == "fashion"
    assert error_of(client.get("/admin/rollouts/%FF"))[0] == 400


def test_reload_applies_and_tells_the_changes(served: Administered, client: httpx.Client) -> None:
    before = client.get("/admin/config").json()
    assert (before["outcome"], before["changes"], before["problems"]) == ("applied", [], [])
    served.write_config(deployments={"relu": {"priority": 3}})
    answer = client.post("/admin/config/reload", json=ADA)

    assert answer.status_code == 200
    told = answer.json()
    assert told["outcome"] == "applied"
    assert told["changes"] == [
        {
            "path": "deployments.relu.priority",
            "kind": "changed",
            "text": told["changes"][0]["text"],
            "consequence": "at_once",
            "built": [],
            "loaded": [],
            "note": "",
        }
    ]
    assert told["changes"][0]["text"].startswith("deployments.relu.priority: ")
    assert told["digest"] != before["digest"]
    assert len(served.applied) == 1
    assert client.get("/admin/config").json() == told
    line = served.audit()[-1]
    assert (line["operation"], line["who"], line["why"], line["code"]) == (
        "config.reload",
        "ada",
        "it looks good",
        "OK",
    )


def test_reload_of_what_is_served_is_unchanged(served: Administered, client: httpx.Client, stub: Any) -> None:
    answer = client.post("/admin/config/reload")
    assert (answer.status_code, answer.json()["outcome"]) == (200, "unchanged")
    said = stub.ReloadConfig(pb.ReloadConfigRequest(), metadata=SHOWN)
    assert said.outcome == "unchanged"
    assert said.digest == answer.json()["digest"]
    assert stub.GetConfig(pb.GetConfigRequest(), metadata=SHOWN) == said
    # For what failed: it is tried again.
    first, second = served.applied
    assert first == second


@pytest.mark.parametrize(
    ("sections", "status", "code", "problem"),
    [
        ({"models": {"relu": {"source": {"onnx": "gone.onnx"}}}}, 400, "INVALID_ARGUMENT", "gone.onnx does not exist"),
        ({"server": {"executors": 7}}, 409, "FAILED_PRECONDITION", "restart it to apply this"),
    ],
    ids=["invalid", "needs a restart"],
)
def test_rejected_reload_tells_the_problems(
    served: Administered,
    client: httpx.Client,
    stub: Any,
    sections: dict[str, Any],
    status: int,
    code: str,
    problem: str,
) -> None:
    digest = client.get("/admin/config").json()["digest"]
    served.write_config(**sections)
    answer = client.post("/admin/config/reload", json=ADA)

    assert answer.status_code == status
    told = answer.json()
    assert set(told) == {"error", *pb.ConfigStatus.DESCRIPTOR.fields_by_name}
    assert told["outcome"] == "rejected"
    assert told["digest"] == digest
    assert problem in told["problems"][0]
    assert told["error"] == "config not applied: " + "\n".join(told["problems"])
    assert client.get("/admin/config").json() == {key: value for key, value in told.items() if key != "error"}
    refused, details = refusal(lambda: stub.ReloadConfig(pb.ReloadConfigRequest(who="bob"), metadata=SHOWN))
    assert (refused.name, details) == (code, told["error"])
    assert served.applied == []
    assert [line["code"] for line in served.audit()] == [code, code]


def test_reload_that_fails_unexpectedly_is_500_and_its_cause_is_in_the_log_only(
    served: Administered, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for failure, said in ((ZeroDivisionError("a secret"), "see the server's log"), (Internal("no disk"), "no disk")):
        served.failure = failure
        served.write_config(deployments={"relu": {"priority": 3}})
        answer = client.post("/admin/config/reload")
        assert answer.status_code == 500
        assert said in answer.json()["error"]
        assert "a secret" not in answer.text
    assert "a secret" in caplog.text


def test_others_are_answered_while_a_reload_is_under_way(served: Administered, client: httpx.Client) -> None:
    served.may_apply.clear()
    served.write_config(deployments={"relu": {"priority": 3}})
    statuses: list[int] = []
    reloading = threading.Thread(target=lambda: statuses.append(client.post("/admin/config/reload").status_code))
    reloading.start()
    with served.client() as other:
        for _ in range(5):
            assert other.get("/admin/rollouts").status_code == 200
    assert statuses == []
    served.may_apply.set()
    reloading.join()
    assert statuses == [200]


def test_reload_while_the_server_stops_is_503(served: Administered, client: httpx.Client) -> None:
    served.reloader.stop()
    assert error_of(client.post("/admin/config/reload"))[0] == 503


def test_tls_of_the_server_is_that_of_the_admin_api(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    issued = authority.issue("server")
    tls = TlsConfig(certificate_file=issued.certificate, key_file=issued.key)
    with administered(tmp_path, tls=tls) as served:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        shown = {"Authorization": f"Bearer {TOKEN}"}
        url = f"https://localhost:{served.endpoints.http.port}/admin/rollouts"
        with httpx.Client(verify=context, trust_env=False, headers=shown, timeout=20) as client:
            assert client.get(url).status_code == 200
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        target = f"localhost:{served.endpoints.grpc.port}"
        with grpc.secure_channel(target, credentials, options=[("grpc.enable_http_proxy", 0)]) as channel:
            assert AdminServiceStub(channel).ListRollouts(pb.ListRolloutsRequest(), metadata=SHOWN).rollouts
        with socket.create_connection(served.endpoints.http, timeout=20) as plain:
            plain.sendall(b"GET /admin/config HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(plain).status == 400


def test_address_that_others_reach_without_tls_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "first").mkdir()
    with administered(tmp_path / "first"):
        assert "without TLS" not in caplog.text
    (tmp_path / "second").mkdir()
    tokens = {"file": str(tmp_path / "second" / "tokens")}
    with administered(tmp_path / "second", admin={"http": "0.0.0.0:0", "grpc": "127.0.0.1:0", "tokens": tokens}):
        assert caplog.text.count("without TLS: its tokens can be read on the way") == 1


def test_taken_address_is_an_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    with administered(tmp_path / "first") as first:
        tokens = {"file": str(tmp_path / "second" / "tokens")}
        for name in ("http", "grpc"):
            taken = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", name: str(getattr(first.endpoints, name))}
            with pytest.raises(FailedPrecondition, match=rf"server\.admin\.{name}: cannot listen"):
                Administered(tmp_path / "second", admin={**taken, "tokens": tokens})
