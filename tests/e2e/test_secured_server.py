"""A server of two processes with TLS and tokens, and serveprune's own commands as its clients."""

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from contract.certificates import Authority, Issued

from e2e.process_pair import ADD_INPUTS, ADD_REQUEST, serving_processes, wait_both, write_models
from e2e.server_process import COMMAND, ServerProcess, wait_until

TOKEN, LATER_TOKEN = "0123456789abcdef-first", "0123456789abcdef-later"
INFER = "/v2/models/add/infer"


class Deployment:
    """A folder with certificates and tokens beside the config."""

    def __init__(self, folder: Path, *, store: Path | None = None, asks_clients: bool = False, **server: Any) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.client = self.authority.issue("client")
        (folder / "tls").mkdir()
        self.server = Issued(folder / "tls" / "server.crt", folder / "tls" / "server.key")
        self.renew("server")
        self.tokens = folder / "tls" / "tokens"
        self.tokens.write_text(f"{TOKEN}\n")
        tls = {"certificate_file": "tls/server.crt", "key_file": "tls/server.key"}
        if asks_clients:
            tls["client_ca_file"] = "authority/authority.crt"
        self.config = write_models(
            folder, store=store, server={"tls": tls, "tokens": {"file": "tls/tokens"}, "drain_seconds": 5, **server}
        )

    def renew(self, name: str) -> None:
        issued = self.authority.issue(name)
        shutil.copy(issued.key, self.server.key)
        shutil.copy(issued.certificate, self.server.certificate)

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **environment},
            cwd=self.folder,
        )


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("secured"))


@pytest.fixture(scope="module")
def secured(deployment: Deployment) -> Iterator[ServerProcess]:
    with ServerProcess(deployment.config) as running:
        yield wait_both(running.wait_open())


def client_of(server: ServerProcess, deployment: Deployment, token: str = TOKEN) -> httpx.Client:
    """Return a client that opens its own connections, so that either process may answer it."""
    context = ssl.create_default_context(cafile=str(deployment.authority.certificate))
    url = f"https://{server.endpoints['http']}"
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, verify=context, headers=headers, trust_env=False, timeout=60)


def statuses(server: ServerProcess, deployment: Deployment, *, token: str = TOKEN, times: int = 12) -> set[int]:
    found = set()
    for _ in range(times):
        with client_of(server, deployment, token) as client:
            found.add(client.post(INFER, json=ADD_REQUEST).status_code)
    return found


def serials(server: ServerProcess, deployment: Deployment, *, times: int = 12) -> set[str]:
    found = set()
    for _ in range(times):
        with client_of(server, deployment) as client, client.stream("GET", "/v2/health/live") as answer:
            found.add(answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()["serialNumber"])
    return found


def test_both_processes_ask_for_tls_and_tokens(secured: ServerProcess, deployment: Deployment) -> None:
    assert "HTTP https://" in secured.log
    assert statuses(secured, deployment) == {200}
    assert statuses(secured, deployment, token=LATER_TOKEN) == {401}
    assert secured.metric("serveprune_rejected_requests_total", code="UNAUTHENTICATED") >= 12
    assert TOKEN not in secured.log


def test_own_commands_are_clients_of_it(secured: ServerProcess, deployment: Deployment, tmp_path: Path) -> None:
    url, address = f"https://{secured.endpoints['http']}", f"grpcs://{secured.endpoints['grpc']}"
    arrays = tmp_path / "inputs.npz"
    np.savez(arrays, allow_pickle=False, **ADD_INPUTS)
    options = ("--ca-file", deployment.authority.certificate, "--token-file", deployment.tokens)
    for where in (("--url", url), ("--grpc", address)):
        answered = deployment.run("infer", "add", "--input", arrays, "--json", *where, *options)
        assert answered.returncode == 0, answered.stderr
        assert json.loads(answered.stdout)["outputs"][0]["data"] == [0, 2, 4]
    environment = {
        "SERVEPRUNE_CA_FILE": str(deployment.authority.certificate),
        "SERVEPRUNE_TOKEN_FILE": str(deployment.tokens),
    }
    listed = deployment.run("tiers", "--json", "--url", url, **environment)
    assert {model["name"] for model in json.loads(listed.stdout)} == {"add", "slow"}, listed.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "is not trusted"),
        (("--ca-file", "CA"), "401"),
        (("--ca-file", "missing.crt", "--token-file", "TOKENS"), "missing.crt"),
        (("--ca-file", "CA", "--token-file", "missing"), "--token-file: expected a readable file"),
        (("--ca-file", "CA", "--cert", "CA"), "--key"),
        (("--ca-file", "CA", "--url", "http://127.0.0.1:1"), "https://"),
    ],
)
def test_own_commands_say_what_is_amiss(
    secured: ServerProcess, deployment: Deployment, options: tuple[str, ...], problem: str
) -> None:
    files = {"CA": str(deployment.authority.certificate), "TOKENS": str(deployment.tokens)}
    words = [files.get(word, word) for word in options]
    refused = deployment.run("tiers", "add", "--url", f"https://{secured.endpoints['http']}", *words)
    assert refused.returncode != 0
    assert problem in refused.stderr
    assert "Traceback" not in refused.stderr


def test_changes_on_disk_reach_both_processes_while_they_serve(secured: ServerProcess, deployment: Deployment) -> None:
    (before,) = serials(secured, deployment)
    with client_of(secured, deployment) as kept:
        assert kept.post(INFER, json=ADD_REQUEST).status_code == 200
        deployment.renew("renewed")
        wait_until(
            lambda: secured.metric("serveprune_reloads_total", what="certificate", outcome="taken") == 2,
            what="both processes have the new certificate",
        )
        assert kept.post(INFER, json=ADD_REQUEST).status_code == 200
        (after,) = serials(secured, deployment)
        assert after != before

        deployment.tokens.write_text(f"{LATER_TOKEN}\n")
        wait_until(
            lambda: secured.metric("serveprune_reloads_total", what="tokens", outcome="taken") == 2,
            what="both processes have the new tokens",
        )
        assert kept.post(INFER, json=ADD_REQUEST).status_code == 401
        assert statuses(secured, deployment, token=LATER_TOKEN) == {200}
        deployment.tokens.write_text(f"{TOKEN}\n")
        wait_until(
            lambda: secured.metric("serveprune_reloads_total", what="tokens", outcome="taken") == 4,
            what="both processes have the old tokens again",
        )


def test_broken_certificate_does_not_end_the_server_when_a_process_dies(
    secured: ServerProcess, deployment: Deployment
) -> None:
    content = deployment.server.key.read_bytes()
    deployment.server.key.write_bytes(b"nonsense")
    try:
        wait_until(
            lambda: secured.metric("serveprune_reloads_total", what="certificate", outcome="refused") == 2,
            what="both processes have refused it",
        )
        serving_processes(secured)[0].kill()
        wait_until(lambda: "could not start: server.tls.key_file" in secured.log, what="it cannot be replaced")
        assert statuses(secured, deployment) == {200}
    finally:
        deployment.server.key.write_bytes(content)
    wait_until(lambda: secured.metric("serveprune_processes") == 2, what="it is replaced after all")
    assert statuses(secured, deployment) == {200}


@pytest.mark.parametrize("processes", [1, 2])
def test_check_asks_as_a_client_would(
    deployment: Deployment, secured: ServerProcess, tmp_path: Path, processes: int
) -> None:
    own = Deployment(
        tmp_path, store=deployment.folder / "store", asks_clients=True, processes=processes, http="127.0.0.1:1"
    )
    environment = {"SERVEPRUNE_CERT": str(own.client.certificate), "SERVEPRUNE_KEY": str(own.client.key)}
    checked = own.run("serve", own.config, "--check", **environment)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "check passed" in checked.stdout

    unequipped = own.run("serve", own.config, "--check")
    assert unequipped.returncode == 1
    assert "SERVEPRUNE_CERT" in unequipped.stdout


def test_start_is_refused_and_nothing_left_when_they_are_not_in_order(tmp_path: Path) -> None:
    own = Deployment(tmp_path)
    shutil.copy(own.authority.issue("another").key, own.server.key)
    own.tokens.write_text("too-brief\n")
    for command in (("serve", own.config), ("config", "check", own.config)):
        refused = own.run(*command)
        said = refused.stdout + refused.stderr
        assert refused.returncode == 2
        assert "the key is another certificate's" in said
        assert "line 1: expected a token of 16 to 4096 characters, got 9" in said
        assert "Traceback" not in said
        assert "too-brief" not in said
    assert not (tmp_path / "store" / "artifacts").exists()
