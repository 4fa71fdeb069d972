"""What TorchServe calls: one model with all its tiers in each worker, and a batch of requests at a time."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from http import HTTPStatus
from pathlib import Path
from typing import Any

from serveprune.config.model import DENSE
from serveprune.errors import Cancelled, FailedPrecondition, Internal, MessageTooLarge, ServePruneError
from serveprune.frontends.http.errors import headers_of, status_of
from serveprune.handlers.own_page import OwnPage
from serveprune.handlers.torchserve.replies import JSON, encode_description, encode_error, encode_reply, header_text
from serveprune.handlers.torchserve.rows import Form, decode_row
from serveprune.handlers.torchserve.settings import config_of, max_response_bytes, metrics_address, settings_of
from serveprune.handlers.torchserve.teller import Teller, declared_metrics, worker_name
from serveprune.models.variant import Variant, VariantState
from serveprune.oip.answer import Answer
from serveprune.server import Server

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 600.0
"""For dense, which may have to be exported first. TorchServe's own `startupTimeout` may be shorter."""

_DECODING = "TS_DECODE_INPUT_REQUEST"
_PROTOCOL = "TS_OPEN_INFERENCE_PROTOCOL"
_DESCRIBE = "describe"
"""Header by which TorchServe asks on behalf of `GET /models/NAME?customized=true`."""

_GOES_ON = "ts_stream_next"
"""Header of an answer that is one of several."""

_Row = tuple[Answer, Form] | bytes | ServePruneError
"""An answer to come and its form, or one that is there, or why there is none."""


class TierHandler:
    """Serves the tiers of one model. TorchServe makes one in each worker, and calls it from one thread.

    The first worker that needs an artifact has it built in a process of its own, the others wait for it; dense serves
    meanwhile, and what is ready is served without a restart. What fails to be built leaves the others serving.
    """

    def __init__(self) -> None:
        self._server: Server | None = None
        self._model = self._version = ""
        self._max_response_bytes = 0
        self._is_reread = os.environ.get(_PROTOCOL) == "oip"

    def initialize(self, context: Any) -> None:
        """Load the model, and return when dense serves.

        Raises:
            ServePruneError: The settings are wrong, or dense cannot be served.
        """
        # The worker's own decoder takes NaN for JSON, and halves of surrogate pairs for text.
        os.environ[_DECODING] = "false"
        model = context.manifest["model"]
        folder = Path(context.system_properties["model_dir"])
        said: Any = settings_of(folder, config_file=model.get("configFile"))
        config = config_of(
            said,
            model=context.model_name,
            version=str(model.get("modelVersion", "1")),
            folder=folder,
            serialized_file=model.get("serializedFile"),
        )
        self._max_response_bytes = max_response_bytes(said)
        self._model, self._version = context.model_name, config.model(context.model_name).version
        page = metrics_address(said)
        server = self._server = Server(config)
        if page is not None:
            OwnPage(server.metrics.registry, page)
        declared = declared_metrics(context.metrics.cache)
        worker = worker_name(self._model, version=self._version, arguments=sys.argv)
        teller = Teller(server.metrics, declared, worker=worker)
        teller.start()
        try:
            self._load(server)
        except BaseException:
            teller.stop()
            raise

    def _load(self, server: Server) -> None:
        server.load()
        server.controlplane.wait_for(lambda _: self._dense.state.is_settled, _PATIENCE_SECONDS)
        if self._dense.state is not VariantState.READY:
            reasons = "; ".join(self._dense.reasons) or f"not there after {_PATIENCE_SECONDS:g} s"
            server.stop(drain_seconds=0.0)
            raise FailedPrecondition(f"model {self._model}: {DENSE} cannot be served: {reasons}")

    @property
    def _dense(self) -> Variant:
        assert self._server is not None
        return self._server.registry.get(self._model, version=self._version).dense

    def handle(self, data: Sequence[Mapping[str, object]], context: Any) -> list[bytes]:
        """Answer a batch: rows of the same tier are computed together, and each row fails for itself."""
        assert self._server is not None
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        rows = [self._submitted(*row) for row in zip(data, headers, strict=True)]
        self._server.dataplane.proceed()
        for index, each in enumerate(headers):
            if not any(isinstance(value, str) for value in each.values()):
                # A gRPC call, perhaps one for a stream, whose front end ends the worker where this is not said.
                context.set_response_header(index, _GOES_ON, "false")
        return [self._reply(row, index, context) for index, row in enumerate(rows)]

    def _submitted(self, fields: Mapping[str, object], headers: Mapping[str, object]) -> _Row:
        assert self._server is not None
        plane = self._server.dataplane
        try:
            if headers.get(_DESCRIBE) == "True":
                return encode_description(self._server.controlplane.tiers(self._model, version=self._version))
            try:
                metadata = plane.model_metadata(self._model, version=self._version)
                row = decode_row(fields, headers, metadata=metadata, version=self._version)
            except ServePruneError as error:
                # What gets to the data plane it counts itself.
                plane.count_rejection(error.code)
                raise
            return plane.submit(row.request, more=True), row.form
        except ServePruneError as error:
            return error
        except Exception:  # one row must not end the others, nor the worker
            _log.exception("a row could not be read")
            return _unexpected()

    def _reply(self, row: _Row, index: int, context: Any) -> bytes:
        if isinstance(row, bytes):
            context.set_response_content_type(index, JSON)
            return row
        try:
            if isinstance(row, ServePruneError):
                raise row
            answer, form = row
            response = answer.result(_PATIENCE_SECONDS)
            body, content_type = encode_reply(response, form, is_reread=self._is_reread)
            self._check_size(body)
        except ServePruneError as error:
            return self._failed(error, index, context)
        except (CancelledError, TimeoutError):
            return self._failed(Cancelled("the server gave this inference up"), index, context)
        except Exception:  # see above
            _log.exception("an answer could not be written")
            return self._failed(_unexpected(), index, context)
        context.set_response_content_type(index, content_type)
        context.set_response_header(index, "x-compression-tier", header_text(response.tier))
        context.set_response_header(index, "x-compression-tier-reason", header_text(response.tier_reason))
        return body

    def _check_size(self, body: bytes) -> None:
        if len(body) > self._max_response_bytes:
            raise MessageTooLarge(
                f"the answer has {len(body)} bytes, TorchServe takes {self._max_response_bytes}: ask for fewer rows, "
                "or raise max_response_size in config.properties and max_response_bytes in model-config.yaml"
            )

    def _failed(self, error: ServePruneError, index: int, context: Any) -> bytes:
        status = status_of(error)
        context.set_response_status(status, _phrase(status), index)
        context.set_response_content_type(index, JSON)
        for name, value in headers_of(error):
            context.set_response_header(index, name.decode(), value.decode())
        return encode_error(error, model=self._model, version=self._version, is_reread=self._is_reread)


def _unexpected() -> Internal:
    return Internal("internal error; see the worker's log")


def _phrase(status: int) -> str:
    known = {each.value for each in HTTPStatus}
    return HTTPStatus(status).phrase if status in known else ""
