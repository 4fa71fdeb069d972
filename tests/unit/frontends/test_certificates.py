import ssl
import subprocess
from pathlib import Path

import pytest
from contract.certificates import Authority, Issued

from serveprune.config.security import TlsConfig
from serveprune.errors import FailedPrecondition
from serveprune.frontends.certificates import watched_certificate
from serveprune.frontends.public_key import key_kind


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("server")


def config(issued: Issued, **files: Path) -> TlsConfig:
    return TlsConfig.model_validate({"certificate_file": issued.certificate, "key_file": issued.key, **files})


def test_certificate_is_ready_for_both_protocols(authority: Authority, issued: Issued) -> None:
    made = watched_certificate(config(issued)).current

    assert (made.chain, made.key, made.client_ca) == (issued.certificate.read_bytes(), issued.key.read_bytes(), None)
    assert made.context.verify_mode is ssl.CERT_NONE
    assert made.context.minimum_version is ssl.TLSVersion.TLSv1_2
    older = [cipher["name"] for cipher in made.context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert older
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in older)

    asking = watched_certificate(config(issued, client_ca_file=authority.certificate)).current
    assert asking.client_ca == authority.certificate.read_bytes()
    assert asking.context.verify_mode is ssl.CERT_REQUIRED


def test_certificate_and_key_may_stand_in_one_file(issued: Issued, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(issued.key.read_bytes() + issued.certificate.read_bytes())
    watched_certificate(TlsConfig(certificate_file=both, key_file=both))


def test_key_is_in_no_representation(issued: Issued) -> None:
    watched = watched_certificate(config(issued))
    assert "PRIVATE KEY" not in repr([watched, watched.current])


def encrypted(key: Path, tmp_path: Path, *options: str) -> Path:
    file = tmp_path / "encrypted.key"
    command = ["openssl", *options, "-in", str(key), "-out", str(file), "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return file


@pytest.mark.parametrize("options", [("pkcs8", "-topk8"), ("ec", "-aes256")], ids=["PKCS 8", "traditional"])
def test_key_with_a_passphrase_is_refused_and_none_asked_for(
    issued: Issued, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with pytest.raises(FailedPrecondition, match="expected a key without a passphrase"):
        watched_certificate(config(issued, key_file=encrypted(issued.key, tmp_path, *options)))


GARBAGE = b"-----BEGIN %s-----\nc2VjcmV0IHNlY3JldA==\n-----END %s-----\n"


@pytest.mark.parametrize(
    ("key", "content", "problem"),
    [
        ("certificate_file", b"", r"server\.tls\.certificate_file: expected a certificate in PEM form, got none"),
        ("key_file", b"secret", r"server\.tls\.key_file: expected a private key in PEM form, got none"),
        ("certificate_file", GARBAGE % ((b"CERTIFICATE",) * 2), r"server\.tls: expected a certificate and its private"),
        (
            "key_file",
            GARBAGE % ((b"PRIVATE KEY",) * 2),
            r"server\.tls: expected a certificate and its private",
        ),
        ("client_ca_file", b"", r"server\.tls\.client_ca_file: expected certificates of authorities"),
        ("client_ca_file", b"\xff", r"server\.tls\.client_ca_file: expected certificates of authorities"),
        ("client_ca_file", GARBAGE % ((b"CERTIFICATE",) * 2), r"server\.tls\.client_ca_file: expected certificates"),
    ],
)
def test_file_of_another_kind_is_refused_by_its_name(
    issued: Issued, tmp_path: Path, key: str, content: bytes, problem: str
) -> None:
    file = tmp_path / "file.pem"
    file.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=problem) as refused:
        watched_certificate(config(issued, **{key: file}))
    assert str(file) in refused.value.message
    assert not any(secret in refused.value.message for secret in ("secret", "c2VjcmV0"))


def test_key_of_another_certificate_is_refused(authority: Authority, issued: Issued) -> None:
    with pytest.raises(FailedPrecondition, match="the key is another certificate's"):
        watched_certificate(config(issued, key_file=authority.issue("other").key))


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("rsa:2048", "RSA"), ("P-256", "P-256"), ("P-384", "P-384"), ("P-521", "P-521"), ("ed25519", "Ed25519")],
)
def test_key_that_only_one_protocol_could_use_is_refused(tmp_path: Path, algorithm: str, kind: str) -> None:
    """A server with one of Ed25519 would start, and no gRPC client get through."""
    certificate, key = tmp_path / "own.crt", tmp_path / "own.key"
    curve = ("ec", "-pkeyopt", f"ec_paramgen_curve:{algorithm}") if algorithm.startswith("P") else (algorithm,)
    command = ["openssl", "req", "-x509", "-newkey", *curve, "-nodes", "-subj", "/CN=own", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    own = TlsConfig(certificate_file=certificate, key_file=key)

    assert key_kind(certificate.read_bytes()) == kind
    if kind in ("RSA", "P-256", "P-384"):
        watched_certificate(own)
    else:
        with pytest.raises(FailedPrecondition, match=f"of kind RSA, P-256, P-384, .* got {kind}"):
            watched_certificate(own)


def test_file_that_cannot_be_read_is_refused_by_its_setting(issued: Issued, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"server\.tls\.key_file: expected a readable file"):
        watched_certificate(config(issued, key_file=tmp_path / "none"))
