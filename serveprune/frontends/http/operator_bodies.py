from serveprune.errors import MessageTooLarge, ResourceExhausted
from serveprune.frontends.http.asgi import Headers, Receive
from serveprune.frontends.http.body import inflate, read_body
from serveprune.frontends.http.body_budget import BodyBudget
from serveprune.frontends.http.request_headers import parse_headers

MAX_BODY_BYTES = 2**16


class OperatorBodies:
    """Reads the bodies of calls to the admin API, which are small, of any coding, and in time. Thread-safe.

    Args:
        max_together_bytes: Of all that are being read.
        timeout_seconds: Within which each must come.
    """

    def __init__(self, *, max_together_bytes: int, timeout_seconds: float) -> None:
        self._budget = BodyBudget(max_together_bytes)
        self._timeout_seconds = timeout_seconds

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """Read a body to its end.

        Raises:
            MessageTooLarge: It, or what it inflates to, is larger than `MAX_BODY_BYTES`.
            ResourceExhausted: Too many bytes of others are held.
            ServePruneError: It does not come in time, its client has left, or its coding is unknown or broken.
        """
        parsed = parse_headers(headers)
        try:
            with self._budget.share() as take:
                body = await read_body(
                    receive,
                    take=take,
                    declared_bytes=parsed.body_bytes,
                    max_bytes=MAX_BODY_BYTES,
                    timeout_seconds=self._timeout_seconds,
                )
            return bytes(inflate(body, coding=parsed.coding, max_bytes=MAX_BODY_BYTES))
        except MessageTooLarge:
            raise MessageTooLarge(f"body: expected at most {MAX_BODY_BYTES} bytes, got more") from None
        except ResourceExhausted as error:
            raise ResourceExhausted(
                f"other calls to the admin API already send {self._budget.max_bytes} bytes; retry later",
                retry_after_seconds=error.retry_after_seconds,
            ) from None
