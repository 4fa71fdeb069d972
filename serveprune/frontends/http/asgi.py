"""The part of ASGI 3 that the front end speaks."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Headers = Sequence[Header]
