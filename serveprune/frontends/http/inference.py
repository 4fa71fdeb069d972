"""One inference over HTTP: body in, data plane, body out."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future

import numpy as np

from serveprune.config.server import ServerConfig
from serveprune.errors import Code, MessageTooLarge, ServePruneError
from serveprune.frontends.http.asgi import Header, Headers, Receive
from serveprune.frontends.http.body import Body, inflate, read_body
from serveprune.frontends.http.body_budget import BodyBudget, Take
from serveprune.frontends.http.errors import UnsupportedMediaType
from serveprune.frontends.http.pending_answer import PendingAnswer
from serveprune.frontends.http.reply import Reply
from serveprune.frontends.http.request_headers import RequestHeaders, parse_headers
from serveprune.frontends.http.routes import HttpRoute
from serveprune.frontends.observed_request import ObservedRequest
from serveprune.frontends.planes import DataPlane
from serveprune.oip.datatype import Datatype
from serveprune.oip.json_codec import decode_request, encode_response
from serveprune.oip.json_cost import parsing_bytes
from serveprune.oip.messages import InferenceRequest, InferenceResponse
from serveprune.oip.output_format import OutputFormat
from serveprune.oip.tensor import Tensor

INLINE_BYTES = 2**16
"""Bodies above this size are decoded and encoded apart from the event loop, which serves the others meanwhile."""

_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")


class InferenceHandler:
    """Answers ``POST /v2/models/{model}/infer``.

    Attributes:
        budget: Of the bodies that are being received.
        timeout_seconds: Within which a request is answered.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        config: ServerConfig,
        budget: BodyBudget,
        workers: Executor,
        on_rejected: Callable[[Code], None],
    ) -> None:
        self._dataplane = dataplane
        self._config = config
        self._workers = workers
        self.budget = budget
        self._parsing = BodyBudget(budget.max_bytes)
        self.timeout_seconds = config.request_timeout_seconds
        self.reject = on_rejected
        self.submit, self.proceed = dataplane.submit, dataplane.proceed

    async def answer(
        self, route: HttpRoute, headers: Headers, receive: Receive, *, observed: ObservedRequest | None = None
    ) -> Reply:
        """Answer one request.

        Args:
            route: Where it goes.
            headers: Of the request.
            receive: Gives its body.
            observed: Where it is recorded.

        Raises:
            ServePruneError: It cannot be answered.
        """
        deadline = time.monotonic() + self.timeout_seconds
        with self.budget.share() as take:
            try:
                request, output_format, size_bytes = await self._decode(
                    route, headers, receive, take, deadline=deadline
                )
            except ServePruneError as error:
                # Later refusals are the data plane's, which counts them itself.
                self.reject(error.code)
                raise
            if observed is None:
                submitted = self.submit(request)
            else:
                observed.asked(request, size_bytes=size_bytes)
                submitted = self.submit(request, record=observed.record)
        # The answer may be long in coming, and nothing here needs the tensors any more.
        del request
        pending = PendingAnswer(submitted, receive=receive, timeout_seconds=deadline - time.monotonic())
        return await self._encode(await pending.result(), output_format)

    async def _decode(
        self, route: HttpRoute, headers: Headers, receive: Receive, take: Take, *, deadline: float
    ) -> tuple[InferenceRequest, OutputFormat, int]:
        parsed = parse_headers(headers)
        body = await read_body(
            receive,
            take=take,
            declared_bytes=parsed.body_bytes,
            max_bytes=self._config.max_request_bytes,
            timeout_seconds=self._config.body_timeout_seconds,
        )
        if len(body) <= INLINE_BYTES and parsed.coding == b"identity":
            return *self.decode(body, parsed, route, deadline), len(body)
        loop = asyncio.get_running_loop()
        decoded = await loop.run_in_executor(self._workers, self.decode, body, parsed, route, deadline)
        return *decoded, len(body)

    def decode(
        self, body: Body, headers: RequestHeaders, route: HttpRoute, deadline: float
    ) -> tuple[InferenceRequest, OutputFormat]:
        """Return the request a complete body holds, and the form in which its answer is wanted.

        Raises:
            ServePruneError: It holds none.
        """
        body = inflate(body, coding=headers.coding, max_bytes=self._config.max_request_bytes)
        if headers.raw_media_type is not None:
            tensor = self._raw_input(body, route, media_type=headers.raw_media_type)
            request = InferenceRequest(
                route.model,
                (tensor,),
                version=route.version,
                tier=headers.tier,
                deadline=deadline,
                max_latency_ms=headers.max_latency_ms,
                min_quality=headers.min_quality,
                headers=headers.everything,
            )
            return request, OutputFormat()
        json_bytes = len(body) if headers.json_bytes is None else headers.json_bytes
        if json_bytes <= INLINE_BYTES:
            return _decode_json(body, headers, route, deadline)
        with self._parsing.share() as take:
            take(self._parsing_bytes(body, json_bytes))
            return _decode_json(body, headers, route, deadline)

    def _parsing_bytes(self, body: Body, json_bytes: int) -> int:
        needed_bytes = parsing_bytes(body if json_bytes >= len(body) else memoryview(body)[:json_bytes])
        if needed_bytes > self._parsing.max_bytes:
            raise MessageTooLarge(
                f"body: its JSON may take {needed_bytes} bytes once it is parsed, expected at most "
                f"{self._parsing.max_bytes} (server.max_buffered_bytes); send tensors in binary form"
            )
        return needed_bytes

    def _raw_input(self, body: Body, route: HttpRoute, *, media_type: bytes) -> Tensor:
        metadata = self._dataplane.model_metadata(route.model, version=route.version)
        spec = next((spec for spec in metadata.inputs if spec.datatype is Datatype.BYTES), None)
        if spec is None:
            raise UnsupportedMediaType(
                f"Content-Type: expected JSON, since model {route.model} has no BYTES input, got "
                f"{media_type.decode('latin-1')}"
            )
        array = np.empty((1,) * len(spec.shape), dtype=object)
        array[...] = bytes(body)
        return Tensor(spec.name, Datatype.BYTES, array)

    def is_large(self, response: InferenceResponse) -> bool:
        """Tell whether an answer is to be encoded apart from the event loop."""
        return sum(tensor.size_bytes for tensor in response.outputs) > INLINE_BYTES

    def encode(self, response: InferenceResponse, output_format: OutputFormat) -> Reply:
        """Return the reply an answer becomes.

        Raises:
            InvalidArgument: An output cannot be said in JSON.
        """
        parts, json_bytes = encode_response(response, output_format)
        tier: Header = (b"x-compression-tier", response.tier.encode("latin-1", errors="replace"))
        if json_bytes is None:
            return Reply(200, (_JSON, tier), parts)
        length: Header = (b"inference-header-content-length", b"%d" % json_bytes)
        return Reply(200, (_BINARY, length, tier), parts)

    def encode_apart(self, response: InferenceResponse, output_format: OutputFormat) -> "Future[Reply]":
        """Do so in another thread."""
        return self._workers.submit(self.encode, response, output_format)

    async def _encode(self, response: InferenceResponse, output_format: OutputFormat) -> Reply:
        if self.is_large(response):
            return await asyncio.wrap_future(self.encode_apart(response, output_format))
        return self.encode(response, output_format)


def _decode_json(
    body: Body, headers: RequestHeaders, route: HttpRoute, deadline: float
) -> tuple[InferenceRequest, OutputFormat]:
    return decode_request(
        body,
        header_length=headers.json_bytes,
        model=route.model,
        version=route.version,
        tier=headers.tier,
        deadline=deadline,
        max_latency_ms=headers.max_latency_ms,
        min_quality=headers.min_quality,
        headers=headers.everything,
    )
