from pathlib import Path

import pytest
from unit.config.conftest import Load, Problems

from serveprune.config.server import ServerConfig

MODELS = "models: {m: {source: {onnx: model.onnx}}}\n"
SECRET = "hunter2-hunter2-hunter2"


def test_paths_of_tls_and_tokens_are_relative_to_the_file(load: Load, folder: Path) -> None:
    for name in ("server.crt", "server.key", "clients.crt", "tokens"):
        (folder / name).write_text("content")
    tls = "{certificate_file: server.crt, key_file: ./server.key, client_ca_file: clients.crt}"
    server = load(f"{MODELS}server: {{tls: {tls}, tokens: {{file: tokens, environment: TOKENS_1}}}}").server

    assert server.tls is not None
    assert server.tokens is not None
    assert (server.tls.certificate_file, server.tls.key_file) == (folder / "server.crt", folder / "server.key")
    assert (server.tls.client_ca_file, server.tokens.file) == (folder / "clients.crt", folder / "tokens")
    assert server.tokens.environment == "TOKENS_1"
    assert ServerConfig.model_validate(server.model_dump()) == server
    assert ServerConfig.model_validate_json(server.model_dump_json()) == server


def test_neither_is_asked_for_by_default(load: Load) -> None:
    server = load(MODELS).server
    assert (server.tls, server.tokens) == (None, None)


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ("{tls: {certificate_file: model.onnx}}", "server.tls.key_file: expected this key, got none"),
        (
            "{tls: {certificate_file: model.onnx, key_file: none.key}}",
            "server.tls.key_file: expected a file, but none.key does not exist",
        ),
        (
            "{tls: {certificate_file: minilm, key_file: model.onnx}}",
            "server.tls.certificate_file: expected a file, got a folder: minilm",
        ),
        ("{tls: }", "server.tls: expected a value, got nothing; leave the key out"),
        ("{tokens: }", "server.tokens: expected a value, got nothing; leave the key out"),
        (
            "{tls: {certificate_file: model.onnx, key_file: model.onnx, client_ca_file: }}",
            "server.tls.client_ca_file: expected a value, got nothing",
        ),
        ("{tokens: {environment: TOKENS, file: }}", "server.tokens.file: expected a value, got nothing"),
        ("{tokens: {file: model.onnx, environment: }}", "server.tokens.environment: expected a value, got nothing"),
        ("{tls: {cert: a}}", "server.tls.cert: unknown key"),
        ("{tokens: {}}", "server.tokens: expected at least one of the keys file and environment, got none"),
        ("{tokens: {file: none}}", "server.tokens.file: expected a file, but none does not exist"),
    ],
)
def test_what_is_amiss_is_told_by_key(problems: Problems, server: str, problem: str) -> None:
    assert any(problem in found for found in problems(f"{MODELS}server: {server}\n"))


@pytest.mark.parametrize(
    "tokens",
    [SECRET, f"[{SECRET}]", f"{{environment: {SECRET}}}", f"{{environment: [{SECRET}]}}", f"{{token: {SECRET}}}"],
)
def test_token_that_stands_in_the_config_is_not_quoted(problems: Problems, tokens: str) -> None:
    found = problems(f"{MODELS}server: {{tokens: {tokens}}}\n")
    assert found
    assert "server.tokens" in found[0]
    assert not any("hunter2" in problem for problem in found)


def test_admin_api_needs_tokens_and_is_not_there_by_default(load: Load, folder: Path, problems: Problems) -> None:
    (folder / "tokens").write_text("content")
    admin = load(f"{MODELS}server: {{admin: {{grpc: '127.0.0.1:0', tokens: {{file: tokens}}}}}}").server.admin
    assert admin is not None
    assert (str(admin.http), str(admin.grpc), admin.tokens.file) == (
        "127.0.0.1:8083",
        "127.0.0.1:0",
        folder / "tokens",
    )
    assert load(MODELS).server.admin is None
    for text, problem in (
        ("{admin: {http: '127.0.0.1:1'}}", "server.admin.tokens: expected this key, got none"),
        ("{admin: }", "server.admin: expected a value, got nothing"),
        ("{admin: {tokens: }}", "server.admin.tokens: expected a value, got nothing"),
        ("{admin: {tokens: {environment: " + SECRET + "}}}", "server.admin.tokens.environment: expected the name"),
    ):
        (said,) = problems(f"{MODELS}server: {text}")
        assert problem in said
        assert SECRET not in said
