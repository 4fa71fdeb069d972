import ssl
from pathlib import Path

import pytest
from contract.certificates import Authority

from serveprune.cli.client import GrpcClient, HttpClient
from serveprune.cli.credentials import Credentials, credentials, credentials_of_own_server
from serveprune.config.security import TlsConfig, TokensConfig
from serveprune.config.server import ServerConfig
from serveprune.errors import FailedPrecondition, InvalidArgument

TOKEN = "token-of-a-client-0001"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"# mine\n{TOKEN}\n")
    return file


def test_options_become_credentials(authority: Authority, token_file: Path) -> None:
    client = authority.issue("client")
    given = credentials(token_file=token_file, ca_file=authority.certificate, cert=client.certificate, key=client.key)
    assert given.token == TOKEN
    assert TOKEN not in repr(given)
    assert given.context().verify_mode is ssl.CERT_REQUIRED
    assert given.context().check_hostname


def test_options_that_are_of_no_use_are_refused(authority: Authority, tmp_path: Path) -> None:
    client, nothing = authority.issue("client"), {"token_file": None, "ca_file": None, "cert": None, "key": None}
    with pytest.raises(InvalidArgument, match="both of --cert and --key"):
        credentials(**{**nothing, "cert": client.certificate})
    with pytest.raises(InvalidArgument, match="--token-file: expected a readable file"):
        credentials(**{**nothing, "token_file": tmp_path / "none"})
    (tmp_path / "brief").write_text("secret")
    with pytest.raises(InvalidArgument, match=r"--token-file: .*expected a token of 16") as refused:
        credentials(**{**nothing, "token_file": tmp_path / "brief"})
    assert "secret" not in refused.value.message
    with pytest.raises(InvalidArgument, match="expected readable PEM files that belong together"):
        credentials(**{**nothing, "ca_file": client.key}).context()
    with pytest.raises(InvalidArgument, match="expected readable PEM files that belong together"):
        credentials(**{**nothing, "cert": client.certificate, "key": authority.issue("other").key}).context()


def test_credentials_for_tls_are_refused_without_it(authority: Authority) -> None:
    """Or a token would go out in plain text where its owner wanted to know whom it goes to."""
    given = Credentials(TOKEN, ca_file=authority.certificate)
    with pytest.raises(InvalidArgument, match="begins with https://"):
        HttpClient("http://127.0.0.1:1", credentials=given)
    with pytest.raises(InvalidArgument, match="begins with grpcs://"):
        GrpcClient("127.0.0.1:1", credentials=given)


def test_servers_test_of_itself_has_what_the_server_asks_for(authority: Authority, token_file: Path) -> None:
    server, client = authority.issue("server"), authority.issue("client")
    tls = TlsConfig(certificate_file=server.certificate, key_file=server.key, client_ca_file=authority.certificate)
    config = ServerConfig(tls=tls, tokens=TokensConfig(file=token_file))
    environment = {"SERVEPRUNE_CERT": str(client.certificate), "SERVEPRUNE_KEY": str(client.key)}

    given = credentials_of_own_server(config, environment=environment)
    assert given == Credentials(TOKEN, server.certificate, client.certificate, client.key, is_own_server=True)
    assert not given.context().check_hostname
    assert given.context().verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(FailedPrecondition, match="set SERVEPRUNE_CERT and SERVEPRUNE_KEY"):
        credentials_of_own_server(config, environment={})
    assert credentials_of_own_server(ServerConfig(), environment=environment) == Credentials()
