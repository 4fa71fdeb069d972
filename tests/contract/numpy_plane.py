"""A data plane of a few numpy functions, for tests of the front ends alone."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract.cases import MAX_ROWS, identity_model
from serveprune.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServePruneError,
    Unavailable,
    Unimplemented,
)
from serveprune.observability.request_record import RequestRecord
from serveprune.oip.answer import Answer
from serveprune.oip.datatype import Datatype
from serveprune.oip.messages import (
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    ModelState,
    RepositoryEntry,
    ServerMetadata,
)
from serveprune.oip.tensor import Array, Tensor, TensorSpec
from serveprune.routing.tier_selection import choose_tier

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]

SECRET = "/srv/secret/weights.bin"
"""Part of an unexpected error's message; no client may ever see it."""

_FAILURES: Mapping[str, Exception] = {
    "broken": ValueError(f"cannot read {SECRET}"),
    "building": Unavailable("tier int8 is building", retry_after_seconds=2.5),
    "full": ResourceExhausted("the queue is full", retry_after_seconds=0.2),
    "late": DeadlineExceeded("the deadline has passed"),
    "unprepared": FailedPrecondition("install the extra serveprune[compress]"),
    "unimplemented": Unimplemented("no streams here"),
    "damaged": DataLoss("the digest differs"),
}


@dataclass(frozen=True, slots=True)
class _Model:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    function: Function
    tiers: tuple[str, ...] = ("dense",)


class NumpyPlane:
    """Data plane and control plane in one, computing in threads of its own.

    Attributes:
        requests: What came through the front end, in order of arrival.
        answers: What was handed back for them.
        entered: Set when the model ``slow`` has begun.
        release: Lets the model ``slow`` end.
        is_ready: What ``ready`` answers.
        may_submit: Cleared to hold up whoever submits.
        changes: What was loaded and unloaded.
        rounds: How many requests came before each `proceed`.
    """

    def __init__(self) -> None:
        self.requests: list[InferenceRequest] = []
        self.answers: list[Answer] = []
        self.entered = threading.Event()
        self.release = threading.Event()
        self.is_ready = True
        self.may_submit = threading.Event()
        self.may_submit.set()
        self.rounds: list[int] = []
        self.changes: list[tuple[str, str]] = []
        self._together = 0
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="numpy-plane")
        self._models = self._build_models()

    def close(self) -> None:
        self.release.set()
        self._threads.shutdown(wait=True)

    def submit(self, request: InferenceRequest, *, more: bool = False, record: RequestRecord | None = None) -> Answer:
        self.requests.append(request)
        assert self.may_submit.wait(20)
        self._together += more
        name, tier = self._resolve(request)
        model = self._model(name, version=request.version)
        if tier not in model.tiers:
            raise NotFound(f"model {name} has no tier {tier!r}; it has: {', '.join(model.tiers)}")
        answer = Answer()
        self._threads.submit(_compute_into, answer, model, request, tier)
        self.answers.append(answer)
        return answer

    def proceed(self) -> None:
        self.rounds.append(self._together)
        self._together = 0

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self.is_ready

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("numpy-plane", "0.1", ("binary_tensor_data", "model_repository"))

    def model_ready(self, name: str, *, version: str | None = None) -> bool:
        self._model(name.partition("@")[0], version=version)
        return name != "unready"

    def model_metadata(self, name: str, *, version: str | None = None) -> ModelMetadata:
        model = self._model(name.partition("@")[0], version=version)
        return ModelMetadata(name, ("1",), "numpy", model.inputs, model.outputs, {"tiers": ",".join(model.tiers)})

    def index(self, *, ready_only: bool = False) -> list[RepositoryEntry]:
        entries = [RepositoryEntry(name, "1", ModelState.READY) for name in self._models if name != "unready"]
        loading = [RepositoryEntry("unready", "1", ModelState.LOADING, "being imported")]
        return entries if ready_only else entries + loading

    def tiers(self, name: str, *, version: str | None = None) -> dict[str, Any]:
        model = self._model(name, version=version)
        return {"model": name, "tiers": [{"name": tier, "state": "READY"} for tier in model.tiers]}

    def load(self, name: str) -> "Future[None]":
        return self._change("load", name)

    def unload(self, name: str) -> "Future[None]":
        return self._change("unload", name)

    def _change(self, action: str, name: str) -> "Future[None]":
        """Do what the name says."""
        match name:
            case "refused":
                raise FailedPrecondition("models are not loaded here")
            case "failing":
                return self._threads.submit(_raise, FailedPrecondition("the graph is broken"))
            case "crashing":
                return self._threads.submit(_raise, ValueError(f"cannot read {SECRET}"))
            case "lasting":
                return self._threads.submit(self._change_later, action, name)
            case _:
                return self._threads.submit(self.changes.append, (action, name))

    def _change_later(self, action: str, name: str) -> None:
        self._wait({})
        self.changes.append((action, name))

    def _resolve(self, request: InferenceRequest) -> tuple[str, str]:
        choice = choose_tier(request)
        return choice.model, choice.tier or "dense"

    def _model(self, name: str, *, version: str | None) -> _Model:
        if name not in self._models or version not in (None, "1"):
            raise NotFound(f"no model {name!r} of version {version or 'any'}")
        return self._models[name]

    def _build_models(self) -> dict[str, _Model]:
        identities = {identity_model(datatype): _identity(datatype) for datatype in Datatype}
        failures = {name: _Model((), (), _raising(error)) for name, error in _FAILURES.items()}
        terms = (TensorSpec("a", Datatype.FP32, (-1, 3)), TensorSpec("b", Datatype.FP32, (-1, 3)))
        results = (TensorSpec("sum", Datatype.FP32, (-1, 3)), TensorSpec("difference", Datatype.FP32, (-1, 3)))
        add = _Model(terms, results, _add, tiers=("dense", "int8"))
        text = TensorSpec("text", Datatype.BYTES, (-1,))
        ids = TensorSpec("input_ids", Datatype.INT64, (-1, -1))
        lengths = _Model((text, ids), (TensorSpec("length", Datatype.INT64, (-1,)),), _length)
        return {**identities, **failures, "add": add, "length": lengths, "slow": _Model((), (), self._wait)} | {
            "unready": _Model((), (), _raising(Unavailable("still loading")))
        }

    def _wait(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self.entered.set()
        if not self.release.wait(60):
            raise TimeoutError("nobody released the slow model")
        return {"done": np.array([1], dtype=np.int32)}


def _raise(error: Exception) -> None:
    raise error


def _identity(datatype: Datatype) -> _Model:
    return _Model(
        (TensorSpec("x", datatype, (-1, -1)),), (TensorSpec("y", datatype, (-1, -1)),), lambda feeds: {"y": feeds["x"]}
    )


def _add(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"sum": feeds["a"] + feeds["b"], "difference": feeds["a"] - feeds["b"]}


def _length(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"length": np.array([len(element) for element in feeds["text"]], dtype=np.int64)}


def _raising(error: Exception) -> Function:
    def fail(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        raise error

    return fail


def _compute_into(answer: Answer, model: _Model, request: InferenceRequest, tier: str) -> None:
    if answer.cancelled():
        return
    try:
        answer.set_result(_compute(model, request, tier))
    except Exception as error:  # whoever waits for the answer is told
        answer.set_exception(error)


def _compute(model: _Model, request: InferenceRequest, tier: str) -> InferenceResponse:
    given = {tensor.name: tensor for tensor in request.inputs}
    _check(model, given)
    arrays = model.function({name: tensor.array for name, tensor in given.items()})
    datatypes = {spec.name: spec.datatype for spec in model.outputs}
    unknown = sorted(set(request.outputs) - set(arrays))
    if unknown:
        raise InvalidArgument(f"unknown output {unknown[0]!r}; the model gives: {', '.join(arrays)}")
    names = request.outputs or tuple(arrays)
    outputs = tuple(Tensor(name, datatypes.get(name, Datatype.of(arrays[name].dtype)), arrays[name]) for name in names)
    return InferenceResponse(request.model, "1", outputs, tier, "asked for by a test", request.id)


def _check(model: _Model, given: Mapping[str, Tensor]) -> None:
    problem = _problem(model, given)
    if problem is not None:
        raise problem


def _problem(model: _Model, given: Mapping[str, Tensor]) -> ServePruneError | None:
    specs = {spec.name: spec for spec in model.inputs}
    for name, tensor in given.items():
        if name not in specs:
            return InvalidArgument(f"unknown input {name!r}")
        if tensor.datatype is not specs[name].datatype:
            return InvalidArgument(f"input {name}: expected {specs[name].datatype}, got {tensor.datatype}")
        if not specs[name].accepts(tensor.shape) or tensor.array.size == 0:
            return InvalidArgument(f"input {name}: expected {specs[name].shape}, got {list(tensor.shape)}")
        if tensor.shape[0] > MAX_ROWS:
            return InvalidArgument(f"input {name}: expected at most {MAX_ROWS} rows, got {tensor.shape[0]}")
    missing = [name for name in specs if name not in given]
    if missing and "text" not in given:
        return InvalidArgument(f"missing input {missing[0]!r}")
    if len({tensor.shape[0] for tensor in given.values()}) > 1:
        return InvalidArgument("inputs disagree on the number of rows")
    return None
