from dataclasses import dataclass

from serveprune.errors import InvalidArgument
from serveprune.frontends.http.asgi import Headers
from serveprune.frontends.http.errors import UnsupportedMediaType

_NAMES = frozenset(
    (
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"inference-header-content-length",
        b"x-compression-tier",
        b"x-max-latency-ms",
        b"x-min-quality",
    )
)
_MAX_DIGITS = 19
_JSON = b"application/json"
_TEXT = b"text/plain"
_IMAGE = b"image/"
_UTF8 = (b"utf-8", b"utf8", b"us-ascii")


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """The headers that mean something to the front end.

    Attributes:
        body_bytes: Content-Length; ``None`` for a chunked body.
        json_bytes: Inference-Header-Content-Length: bytes of JSON before the binary tensor data.
        everything: All headers, those among them that mean nothing to the front end.
        raw_media_type: Content-Type of a body that is one input as it stands; ``None`` for all others,
            which are JSON whatever they are called.
    """

    body_bytes: int | None
    coding: bytes
    json_bytes: int | None
    tier: str | None
    raw_media_type: bytes | None
    max_latency_ms: str | None = None
    min_quality: str | None = None
    everything: Headers = ()


def parse_headers(headers: Headers) -> RequestHeaders:
    """Read the headers of a request.

    Raises:
        InvalidArgument: One is given twice with different values, or is no number where it must be one.
        UnsupportedMediaType: The body is text in another encoding than UTF-8.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _NAMES and found.setdefault(name, value) != value:
            raise InvalidArgument(f"header {name.decode()}: expected one value, got two that differ")
    json_bytes = _number(found, b"inference-header-content-length")
    tier = found.get(b"x-compression-tier", b"").strip()
    return RequestHeaders(
        body_bytes=_number(found, b"content-length"),
        coding=found.get(b"content-encoding", b"").strip().lower() or b"identity",
        json_bytes=json_bytes,
        tier=tier.decode("latin-1") or None,
        raw_media_type=_raw_media_type(found.get(b"content-type", b"")) if json_bytes is None else None,
        max_latency_ms=_text(found.get(b"x-max-latency-ms")),
        min_quality=_text(found.get(b"x-min-quality")),
        everything=headers,
    )


def _text(value: bytes | None) -> str | None:
    return value.strip().decode("latin-1") or None if value else None


def _number(found: dict[bytes, bytes], name: bytes) -> int | None:
    value = found.get(name)
    if value is None:
        return None
    digits = value.strip()
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise InvalidArgument(f"header {name.decode()}: expected a number of bytes, got {value[:40]!r}")
    return int(digits)


def _raw_media_type(content_type: bytes) -> bytes | None:
    if not content_type or content_type == _JSON:
        return None
    media_type, *parameters = (part.strip() for part in content_type.lower().split(b";"))
    if media_type.startswith(_IMAGE):
        return media_type
    if media_type != _TEXT:
        return None
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name == b"charset" and value.strip(b'"') not in _UTF8:
            raise UnsupportedMediaType(f"Content-Type: expected text in UTF-8, got charset {value[:40]!r}")
    return _TEXT
