"""A request's life, top to bottom: admission, tier, route, tensors, queue, answer."""

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass

from serveprune import __version__
from serveprune.errors import Code, Internal, InvalidArgument, ServePruneError
from serveprune.models.registry import Model, Registry
from serveprune.models.variant import Variant
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.oip.messages import InferenceRequest, InferenceResponse, ModelMetadata, ServerMetadata
from serveprune.oip.tensor import Tensor
from serveprune.routing.router import Route, route
from serveprune.routing.tier_selection import QUALIFIER, choose_tier, split_name
from serveprune.scheduling.job import Job, JobResult
from serveprune.scheduling.scheduler import Scheduler
from serveprune.serving.admission import Admission
from serveprune.serving.feeds import graph_feeds, needs_preprocessing, preprocess

_EXTENSIONS = ("binary_tensor_data", "model_repository", "compression_tiers")


@dataclass(frozen=True, slots=True)
class _Call:
    """One admitted request on its way through the server."""

    request: InferenceRequest
    model: Model
    route: Route
    started: float
    deadline: float
    answer: "Future[InferenceResponse]"

    @property
    def labels(self) -> tuple[str, str, str]:
        """Metric labels of the variant that serves."""
        return (self.model.name, self.model.version, self.route.tier)


class DataPlane:
    """What every front end calls to answer inference and metadata requests. Thread-safe."""

    def __init__(
        self,
        registry: Registry,
        scheduler: Scheduler,
        admission: Admission,
        metrics: Metrics,
        *,
        preprocessing_threads: int,
        request_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._admission = admission
        self._metrics = metrics
        self._timeout_seconds = request_timeout_seconds
        self._clock = clock
        self._preprocessing = ThreadPoolExecutor(preprocessing_threads, thread_name_prefix="preprocessing")

    def submit(self, request: InferenceRequest) -> "Future[InferenceResponse]":
        """Start answering a request; cancel the future when the caller has left.

        Raises:
            ServePruneError: The request can be refused at once; otherwise the future fails with one.
        """
        try:
            call = self._admit(request)
        except ServePruneError as error:
            self.count_rejection(error.code)
            raise
        try:
            if needs_preprocessing(request.inputs, call.model.preprocessor):
                self._preprocessing.submit(self._preprocess_and_queue, call)
            else:
                self._queue(call, list(request.inputs))
        except RuntimeError:  # the pool was shut down between admission and here
            self._finish(call, error=Internal("the server is shutting down"))
        return call.answer

    def _admit(self, request: InferenceRequest) -> _Call:
        started = self._clock()
        choice = choose_tier(request)
        model = self._registry.get(choice.model, version=request.version)
        self._admission.enter()
        try:
            chosen = route(model, choice)
            chosen.instance.acquire()
        except BaseException:
            self._admission.leave()
            raise
        self._metrics.gauge(series.IN_FLIGHT, model.name, model.version).inc()
        self._metrics.counter(series.REQUESTED_TIER, model.name, model.version, chosen.wanted).inc()
        self._metrics.counter(series.SERVED_TIER, model.name, model.version, chosen.tier, chosen.reason).inc()
        deadline = min(request.deadline or float("inf"), started + self._timeout_seconds)
        return _Call(request, model, chosen, started, deadline, Future())

    def _preprocess_and_queue(self, call: _Call) -> None:
        if call.answer.cancelled():
            self._finish(call, error=None)
            return
        preprocessor = call.model.preprocessor
        assert preprocessor is not None
        try:
            started = self._clock()
            tensors = preprocess(call.request.inputs, preprocessor)
            self._metrics.histogram(series.PREPROCESSING_SECONDS, *call.labels).observe(self._clock() - started)
        except ServePruneError as error:
            self._finish(call, error=error)
            return
        self._queue(call, tensors)

    def _queue(self, call: _Call, tensors: list[Tensor]) -> None:
        preprocessor, instance = call.model.preprocessor, call.route.instance
        try:
            alternative = preprocessor.input if preprocessor else None
            feeds, rows = graph_feeds(tensors, instance.inputs, alternative=alternative)
            _check_outputs(call.request.outputs, instance.output_names)
            job = Job(instance, feeds, rows, call.deadline, call.request.outputs)
            call.answer.add_done_callback(lambda answer: answer.cancelled() and job.future.cancel())
            job.future.add_done_callback(lambda future: self._computed(call, job, future))
            self._scheduler.submit(job)
        except ServePruneError as error:
            self._finish(call, error=error)

    def _computed(self, call: _Call, job: Job, future: "Future[JobResult]") -> None:
        if future.cancelled():
            self._finish(call, error=None)
            return
        error = future.exception()
        if error is not None:
            self._finish(call, error=error if isinstance(error, ServePruneError) else Internal("internal error"))
            return
        result = future.result()
        self._metrics.histogram(series.QUEUE_SECONDS, *call.labels).observe(result.queue_seconds)
        self._metrics.histogram(series.COMPUTE_SECONDS, *call.labels).observe(result.compute_seconds)
        outputs = tuple(Tensor.of(name, array) for name, array in zip(job.wanted(), result.outputs, strict=True))
        self._finish(call, outputs=outputs)

    def _finish(self, call: _Call, *, outputs: tuple[Tensor, ...] = (), error: ServePruneError | None = None) -> None:
        call.route.instance.release()
        self._admission.leave()
        self._metrics.gauge(series.IN_FLIGHT, call.model.name, call.model.version).dec()
        cancelled = call.answer.cancelled()
        code = Code.CANCELLED if cancelled else error.code if error else "OK"
        self._metrics.counter(series.REQUESTS, *call.labels, code).inc()
        if cancelled:
            return
        if error is None:
            self._metrics.histogram(series.REQUEST_SECONDS, *call.labels).observe(self._clock() - call.started)
        try:
            if error is not None:
                call.answer.set_exception(error)
            else:
                call.answer.set_result(_response(call, outputs))
        except InvalidStateError:
            return  # the caller left in this very moment; nobody waits for the answer

    def count_rejection(self, code: Code) -> None:
        """Count a request that was refused before a tier was chosen."""
        self._metrics.counter(series.REJECTED_REQUESTS, code).inc()

    def close(self) -> None:
        """Stop taking requests that need preprocessing, after those that are being preprocessed."""
        self._preprocessing.shutdown(wait=True)

    def live(self) -> bool:
        """Tell whether the process answers at all."""
        return True

    def ready(self) -> bool:
        """Tell whether every model can be served by at least one tier."""
        return all(model.is_ready for model in self._registry.models())

    def server_metadata(self) -> ServerMetadata:
        """Return who answers."""
        return ServerMetadata("serveprune", __version__, _EXTENSIONS)

    def model_ready(self, name: str, *, version: str | None = None) -> bool:
        """Tell whether a model, or one tier of it (``minilm@int8``), can be served now.

        Raises:
            NotFound: No such model, version or tier.
        """
        model, variant = self._lookup(name, version=version)
        return variant.instance is not None if QUALIFIER in name else model.is_ready

    def model_metadata(self, name: str, *, version: str | None = None) -> ModelMetadata:
        """Return what a model or one of its tiers takes and gives.

        The BYTES input, if there is one, comes first; it stands for the graph inputs after it.

        Raises:
            NotFound: No such model, version or tier.
            Unavailable: The model is still being imported.
        """
        model, variant = self._lookup(name, version=version)
        served = variant.instance or route(model, choose_tier(InferenceRequest(model.name, ()))).instance
        inputs = served.inputs
        properties = {"tiers": ",".join(model.variants), "default_tier": model.default_tier, "tier": variant.tier}
        if model.preprocessor is not None:
            inputs = (model.preprocessor.input, *inputs)
            properties["input_alternatives"] = (
                f"{model.preprocessor.input.name} | {','.join(model.preprocessor.targets)}"
            )
        return ModelMetadata(name, (model.version,), "onnxruntime_onnx", inputs, served.outputs, properties)

    def _lookup(self, name: str, *, version: str | None) -> tuple[Model, Variant]:
        model_name, tier = split_name(name)
        model = self._registry.get(model_name, version=version)
        return model, model.variant(model.default_tier if tier is None else tier)


def _response(call: _Call, outputs: tuple[Tensor, ...]) -> InferenceResponse:
    return InferenceResponse(
        model=call.request.model,
        version=call.model.version,
        outputs=outputs,
        tier=call.route.tier,
        tier_reason=call.route.explanation,
        id=call.request.id,
    )


def _check_outputs(wanted: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InvalidArgument(f"unknown output {unknown[0]!r}; the model gives: {', '.join(known)}")
