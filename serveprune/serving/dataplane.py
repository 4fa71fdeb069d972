"""A request's life, top to bottom: admission, tier, route, tensors, queue, answer."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from prometheus_client import Gauge

from serveprune import __version__
from serveprune.errors import Code, Internal, InvalidArgument, ServePruneError, Unavailable
from serveprune.models.instance import InstanceRetired
from serveprune.models.registry import Model, Registry
from serveprune.models.variant import Variant
from serveprune.observability import metrics as series
from serveprune.observability.metrics import Metrics
from serveprune.observability.request_record import RequestRecord
from serveprune.oip.answer import Answer
from serveprune.oip.messages import InferenceRequest, ModelMetadata, ServerMetadata
from serveprune.oip.tensor import Tensor
from serveprune.routing.objective import objective_of
from serveprune.routing.route import Route
from serveprune.routing.router import Router, route
from serveprune.routing.tier_selection import QUALIFIER, TierChoice, choose_tier, split_name
from serveprune.routing.urgency import urgency_of
from serveprune.scheduling.job import Job, JobResult, row_length
from serveprune.scheduling.job_scheduler import JobScheduler
from serveprune.serving.admission import Admission
from serveprune.serving.call import Call
from serveprune.serving.feeds import graph_feeds, needs_preprocessing, preprocess
from serveprune.serving.settlement import Settlement
from serveprune.serving.shadowing import Shadowing
from serveprune.serving.variant_series import VariantSeries

_log = logging.getLogger(__name__)

_EXTENSIONS = ("binary_tensor_data", "model_repository", "compression_tiers")


class DataPlane:
    """What every front end calls to answer inference and metadata requests. Thread-safe."""

    def __init__(
        self,
        registry: Registry,
        router: Router,
        scheduler: JobScheduler,
        admission: Admission,
        metrics: Metrics,
        shadowing: Shadowing,
        *,
        preprocessing_threads: int,
        request_timeout_seconds: float,
        max_request_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._router = router
        self._scheduler = scheduler
        self._admission = admission
        self._timeout_seconds = request_timeout_seconds
        self._max_rows = max_request_rows
        self._clock = clock
        self._preprocessing = ThreadPoolExecutor(preprocessing_threads, thread_name_prefix="preprocessing")
        self._in_preprocessing: dict[Future[None], Model] = {}
        self._metrics = metrics
        self._series: dict[tuple[tuple[str, str], str], VariantSeries] = {}
        self._in_flight: dict[tuple[str, str], Gauge] = {}
        self._rejected = {code: metrics.counter(series.REJECTED_REQUESTS, code) for code in Code}
        self._shadowing = shadowing
        self._settlement = Settlement(admission, self._in_flight, shadowing, clock=clock)
        scheduler.after_batch = self._settlement.settle

    def expect(self, model: Model) -> None:
        """Make the series of a model, before it is in the registry or has other tiers there."""
        for tier in model.config.tiers:
            if (model.key, tier) not in self._series:
                self._series[model.key, tier] = VariantSeries(
                    self._metrics, model=model.name, version=model.version, tier=tier
                )
        self._in_flight[model.key] = self._metrics.gauge(series.IN_FLIGHT, *model.key)

    def submit(self, request: InferenceRequest, *, more: bool = False, record: RequestRecord | None = None) -> Answer:
        """Start answering a request; cancel the future when the caller has left.

        Args:
            request: As a front end decoded it.
            more: Others follow at once, which may share its run; the last one is followed by `proceed`.
            record: Gets what happens to the request noted.

        Raises:
            ServePruneError: The request can be refused at once; otherwise the future fails with one.
        """
        try:
            call = self._admit(request, more=more, record=record)
        except ServePruneError as error:
            self.count_rejection(error.code)
            raise
        if needs_preprocessing(request.inputs, call.model.preprocessor):
            call.more = False
            self._settlement.tally.apply()
            self._start_preprocessing(call, request.inputs)
        else:
            self._step(call, self._queue, request.inputs)
        return call.answer

    def proceed(self) -> None:
        """Go on with the requests after which more were to come: quick ones are computed here if an executor idles."""
        self._settlement.tally.apply()
        self._scheduler.proceed()

    def _admit(self, request: InferenceRequest, *, more: bool, record: RequestRecord | None) -> Call:
        started = self._clock()
        choice, objective, urgency = choose_tier(request), objective_of(request), urgency_of(request)
        model = self._registry.get(choice.model, version=request.version)
        if choice.tier is not None:
            model.variant(choice.tier)
        size_bytes = sum([tensor.size_bytes for tensor in request.inputs])
        self._admission.enter(model.name, size_bytes)
        self._settlement.tally.count(self._in_flight[model.key])
        deadline = started + min(self._timeout_seconds, urgency.timeout_seconds or math.inf)
        if request.deadline is not None:
            deadline = min(deadline, request.deadline)
        return Call(
            request.model,
            request.id,
            request.outputs,
            request.version,
            model,
            choice,
            objective,
            urgency.priority or model.priority,
            size_bytes,
            started,
            deadline,
            self._series[model.key, choice.tier or model.default_tier],
            more,
            self._router.sticky_key(model, request),
            record,
        )

    def _step(self, call: Call, step: Callable[[Call, Sequence[Tensor]], None], tensors: Sequence[Tensor]) -> None:
        """Take a step in a request's life; whatever goes wrong ends the request, which gives everything back."""
        try:
            step(call, tensors)
        except ServePruneError as error:
            self._settlement.fail(call, error)
        except Exception:  # whatever it is, the caller gets an answer and the log gets the trace
            _log.exception("a request to %s failed", call.model.name)
            self._settlement.fail(call, Internal("internal error; see the server's log"))

    def _start_preprocessing(self, call: Call, tensors: Sequence[Tensor]) -> None:
        try:
            step = self._preprocessing.submit(self._step, call, self._preprocess_and_queue, tensors)
        except RuntimeError:  # the pool was shut down
            self._settlement.fail(call, _shutting_down())
            return
        self._in_preprocessing[step] = call.model
        step.add_done_callback(lambda step: self._preprocessed(call, step))

    def _preprocessed(self, call: Call, step: "Future[None]") -> None:
        self._in_preprocessing.pop(step, None)
        if step.cancelled():
            self._settlement.fail(call, _shutting_down())

    def _preprocess_and_queue(self, call: Call, tensors: Sequence[Tensor]) -> None:
        if call.answer.cancelled():
            self._settlement.leave(call)
            return
        preprocessor = call.model.preprocessor
        assert preprocessor is not None
        started = self._clock()
        filled = preprocess(tensors, preprocessor, max_rows=self._max_rows)
        call.preprocessing_seconds = self._clock() - started
        self._queue(call, filled)

    def _queue(self, call: Call, tensors: Sequence[Tensor]) -> None:
        try:
            self._queue_for(call.model, call, tensors)
        except InstanceRetired:
            # The config has changed while the request was preprocessed.
            self._queue_for(self._registry.get(call.choice.model, version=call.version), call, tensors)

    def _queue_for(self, model: Model, call: Call, tensors: Sequence[Tensor]) -> None:
        # All tiers of a model take and give the same; without any, this says why.
        known = model.any_instance or route(model, call.choice).instance
        preprocessor = model.preprocessor
        alternative = preprocessor.input if preprocessor else None
        feeds, rows = graph_feeds(tensors, known.inputs, max_rows=self._max_rows, alternative=alternative)
        if call.outputs:
            _check_outputs(call.outputs, known.output_names)
        chosen = self._choose(model, call, rows=rows, length=known.fixed_length or row_length(feeds, known.padding))
        if self._shadowing.is_active:
            call.sample = self._shadowing.sample(model, chosen, feeds)
        job = Job(
            chosen.instance,
            feeds,
            rows,
            call.deadline,
            done=lambda result: self._computed(call, job, result),
            outputs=call.outputs,
            target=call.started + (math.inf if chosen.target_seconds is None else chosen.target_seconds),
            priority=call.priority,
        )
        self._scheduler.submit(job, more=call.more, before_queued=self._settlement.tally.apply)
        # One that was given up meanwhile is over, but its job is not.
        if call.answer.cancelled() or not call.answer.done():
            call.answer.add_done_callback(lambda answer: self._scheduler.abandon(job) if answer.cancelled() else None)

    def _choose(self, model: Model, call: Call, *, rows: int, length: int) -> Route:
        """Choose the tier that serves, and hold it."""
        chosen = self._router.route(
            model,
            call.choice,
            objective=call.objective,
            rows=rows,
            length=length,
            elapsed_seconds=self._clock() - call.started,
            sticky_key=call.sticky_key,
        )
        chosen.instance.acquire()
        if chosen.deadline_seconds is not None:
            call.deadline = min(call.deadline, call.started + chosen.deadline_seconds)
        call.route = chosen
        moved = call.series = self._series[model.key, chosen.tier]
        tally = self._settlement.tally
        tally.count(moved.served[chosen.reason])
        tally.count(self._series[model.key, chosen.wanted].requested)
        if call.preprocessing_seconds is not None:
            tally.observe(moved.preprocessing_seconds, call.preprocessing_seconds)
        return chosen

    def _computed(self, call: Call, job: Job, result: JobResult | ServePruneError) -> None:
        if isinstance(result, JobResult):
            self._settlement.computed(call, job, result)
        else:
            self._settlement.fail(call, result)

    def count_rejection(self, code: Code) -> None:
        """Count a request that was refused before a tier was chosen."""
        self._rejected[code].inc()

    def close(self, *, drain_seconds: float) -> bool:
        """Take no more requests that need preprocessing, and wait for those at it, for so long at the most.

        Returns:
            Whether nothing is preprocessed any more: what has begun cannot be interrupted.
        """
        self._preprocessing.shutdown(wait=False)
        wait(list(self._in_preprocessing), drain_seconds)
        self._preprocessing.shutdown(wait=False, cancel_futures=True)
        return not self._in_preprocessing

    def is_preprocessing(self, model: Model) -> bool:
        """Tell whether a request to a model is at its preprocessing, after which it asks for a variant."""
        return any(one is model for one in list(self._in_preprocessing.values()))

    def live(self) -> bool:
        """Tell whether the process answers at all."""
        return True

    def ready(self) -> bool:
        """Tell whether every model would answer a request that names neither version nor tier."""
        return all(model.is_ready for model in self._registry.current())

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
        served, backend = variant.instance, variant.backend
        if served is None:
            stand_in = route(model, TierChoice(model.name, None, strict=False))
            served, backend = stand_in.instance, model.variant(stand_in.tier).backend
        inputs = served.inputs
        properties = {"tiers": ",".join(model.variants), "tier": variant.tier}
        if self._router.adaptive_state(model) is None:
            properties["default_tier"] = model.default_tier
        else:
            properties["policy"] = "adaptive"
        if model.preprocessor is not None:
            inputs = (model.preprocessor.input, *inputs)
            properties["input_alternatives"] = (
                f"{model.preprocessor.input.name} | {','.join(model.preprocessor.targets)}"
            )
        versions = tuple(each.version for each in self._registry.versions(model.name))
        return ModelMetadata(name, versions, f"{backend}_onnx", inputs, served.outputs, properties)

    def _lookup(self, name: str, *, version: str | None) -> tuple[Model, Variant]:
        model_name, tier = split_name(name)
        model = self._registry.get(model_name, version=version)
        return model, model.variant(model.default_tier if tier is None else tier)


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", retry_after_seconds=1.0)


def _check_outputs(wanted: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InvalidArgument(f"unknown output {unknown[0]!r}; the model gives: {', '.join(known)}")
