"""Which kind of key a certificate is for: a few fields of DER, which Python's ssl module does not show."""

import binascii
import re

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(?P<base64>[^-]*)-----END CERTIFICATE-----")
_EXPLICIT_VERSION = 0xA0
_BEFORE_KEY = 5
"""Fields between the version and the key: serial number, algorithm, issuer, validity, subject."""
_ELLIPTIC = bytes.fromhex("2a8648ce3d0201")
_KINDS = {
    bytes.fromhex("2a864886f70d010101"): "RSA",
    bytes.fromhex("2a8648ce3d030107"): "P-256",
    bytes.fromhex("2b81040022"): "P-384",
    bytes.fromhex("2b81040023"): "P-521",
    bytes.fromhex("2b6570"): "Ed25519",
    bytes.fromhex("2b6571"): "Ed448",
}


def key_kind(chain: bytes) -> str | None:
    """Return what the key of the first certificate in a PEM text is; ``None`` if it is nothing common.

    Args:
        chain: That OpenSSL has accepted.
    """
    found = _PEM.search(chain)
    if found is None:
        return None
    try:
        return _KINDS.get(_algorithm(binascii.a2b_base64(found["base64"])))
    except (IndexError, binascii.Error):
        return None


def _algorithm(certificate: bytes) -> bytes:
    """Return the object identifier of the key's algorithm, or of its curve."""
    _, outer, _ = _element(certificate, 0)
    _, position, _ = _element(certificate, outer)
    tag, _, end = _element(certificate, position)
    if tag == _EXPLICIT_VERSION:
        position = end
    for _ in range(_BEFORE_KEY):
        _, _, position = _element(certificate, position)
    _, key, _ = _element(certificate, position)
    _, algorithm, _ = _element(certificate, key)
    _, begin, end = _element(certificate, algorithm)
    if certificate[begin:end] == _ELLIPTIC:
        _, begin, end = _element(certificate, end)
    return certificate[begin:end]


def _element(der: bytes, position: int) -> tuple[int, int, int]:
    """Return the tag of the element at a position, and where its content begins and ends."""
    tag, length = der[position], der[position + 1]
    begin = position + 2
    if length >= 0x80:
        octets = length & 0x7F
        length = int.from_bytes(der[begin : begin + octets], "big")
        begin += octets
    return tag, begin, begin + length
