import random
import re

REQUEST_ID = "x-request-id"
"""Header and metadata that hold the id of a request, and of its answer."""

_ALLOWED = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")


def accepted_id(text: str | None) -> str | None:
    """Return an id that a client gave, unless it is too long or holds what could break a header or a log line."""
    return text if text is not None and _ALLOWED.fullmatch(text) else None


def new_id() -> str:
    """Return an id for a request that has none."""
    return f"{random.getrandbits(64):016x}"
