"""A client nobody here wrote, against front ends with TLS, client certificates and tokens."""

import json
import subprocess
from pathlib import Path

from contract.certificates import Authority
from contract.secured import secured

from serveprune.config.security import TlsConfig, TokensConfig

TOKEN = "token-of-a-client-0001"


def test_triton_client_is_content_over_tls_with_a_token(clients_python: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    server, client = authority.issue("server"), authority.issue("client")
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    tls = TlsConfig(certificate_file=server.certificate, key_file=server.key, client_ca_file=authority.certificate)
    with secured(tls=tls, tokens=TokensConfig(file=tokens)) as served:
        directions = {
            "http": f"localhost:{served.http_address.port}",
            "grpc": f"localhost:{served.grpc_address.port}",
            "ca": str(authority.certificate),
            "cert": str(client.certificate),
            "key": str(client.key),
            "token": TOKEN,
        }
        file = tmp_path / "directions.json"
        file.write_text(json.dumps(directions), encoding="utf-8")
        script = Path(__file__).with_name("clients") / "triton_secured.py"
        finished = subprocess.run(
            [str(clients_python), str(script), str(file)], capture_output=True, text=True, timeout=200
        )

    assert finished.returncode == 0, finished.stderr
    assert "all answered" in finished.stdout
