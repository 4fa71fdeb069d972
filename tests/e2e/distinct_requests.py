"""Requests of which no two are alike, over all protocols and forms, and what each must be answered.

What is expected comes from ONNX Runtime in this process, each request computed alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from contract.cases import Case, WireTensor

from e2e.deployment import fashion_images
from e2e.graphs import CARRIER_WIDTH
from e2e.in_process import image_logits, text_vectors
from serveprune.oip.tensor import Array

TIERS = ("dense", "int8")
HURRY_SECONDS = 0.004
TURN = 16
"""Of so many requests in a row one is abandoned, one hurried, and one invalid."""
_IMAGES, _TEXTS = 200, 160
_MOST_ALIKE = 0.8
"""Cosine between two of the texts at the most, so that no vector can be taken for another's."""
_LEAST_COSINE = 0.96
"""Of an int8 vector to that of the text alone: its neighbours in the batch move the scale of its activations."""
_TOLERANCE = 1e-4


class Fate(Enum):
    """What happens to a request besides being answered."""

    ANSWERED = "answered"
    ABANDONED = "its client leaves"
    HURRIED = "it has next to no time"
    INVALID = "it is refused"


@dataclass(frozen=True, slots=True)
class Expected:
    """What one request must be answered.

    Attributes:
        arrays: By output, only those asked for.
        candidates: Vectors of all texts on this tier ``(T, D)``, of which ``rows`` are this request's; only where the
            answer depends on its neighbours.
    """

    arrays: Mapping[str, Array]
    candidates: Array | None = None
    rows: tuple[int, ...] = ()

    def problem(self, given: Mapping[str, Array]) -> str | None:
        """Say what is wrong with an answer."""
        if list(given) != list(self.arrays):
            return f"expected the outputs {list(self.arrays)}, got {list(given)}"
        for name, expected in self.arrays.items():
            array = given[name]
            if array.shape != expected.shape:
                return f"{name}: expected shape {expected.shape}, got {array.shape}"
            if self.candidates is not None:
                return self._mixed_up(array)
            if expected.dtype.kind != "f" and not np.array_equal(array, expected):
                return f"{name}: expected {expected.tolist()}, got {array.tolist()}"
            if not np.allclose(array, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                return f"{name}: differs by {np.abs(array - expected).max()}"
        return None

    def _mixed_up(self, vectors: Array) -> str | None:
        assert self.candidates is not None
        cosines = vectors @ self.candidates.T / np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest, own = cosines.argmax(axis=1), cosines[np.arange(len(vectors)), list(self.rows)]
        if nearest.tolist() != list(self.rows):
            return f"nearest to the texts {nearest.tolist()}, not to its own, {list(self.rows)}"
        return None if own.min() >= _LEAST_COSINE else f"cosine {own.min()} to the text alone"


@dataclass(frozen=True, slots=True)
class DistinctRequest:
    """One of them; ``number`` says which, and by that how it is sent."""

    number: int
    case: Case
    expected: Expected
    fate: Fate


class RequestBook:
    """Makes requests for the models of `write_models`, from a store of the demo."""

    def __init__(self, folder: Path, store: Path) -> None:
        self._images = fashion_images(folder, _IMAGES)
        self._logits = {tier: image_logits(store, self._images, tier=tier) for tier in TIERS}
        lines = (folder / "sentences_evaluation.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines[:_TEXTS]]
        vectors = text_vectors(store, texts, tier="dense")
        kept = _unlike(vectors)
        self._texts = [texts[index] for index in kept]
        self._vectors = {
            "dense": vectors[kept],
            "int8": text_vectors(store, self._texts, tier="int8"),
        }
        self._carrier = ort.InferenceSession(str(folder / "carrier.onnx"), providers=["CPUExecutionProvider"])

    def requests(self, count: int) -> Iterator[DistinctRequest]:
        """Yield requests; each model, tier, protocol, selection of outputs and number of rows meets each other."""
        makers = (self._carrier_request, self._ragged_request, self._image_request, self._text_request)
        for number in range(count):
            # Of the last kind there are fewer, for they take longest.
            maker = makers[number // 3 % len(makers) if number % 2 else number // 3 % (len(makers) - 1)]
            fate = _fate(number)
            case, expected = maker(number, rows=rows_of(number))
            if fate is Fate.INVALID:
                case = _refused(case, number)
            if fate is Fate.HURRIED:
                parameters = {**case.parameters, "timeout": round(HURRY_SECONDS * 1e6)}
                case = replace(case, parameters=parameters)
            yield DistinctRequest(number, case, expected, fate)

    def _carrier_request(self, number: int, *, rows: int) -> tuple[Case, Expected]:
        x = np.random.default_rng(number).normal(size=(rows, CARRIER_WIDTH)).astype(np.float32)
        feeds: dict[str, Array] = {
            "id": np.array([[1000 * number + row] for row in range(rows)], dtype=np.int64),
            "x": x,
        }
        wanted = ((), ("who",), ("features", "who"), ("total", "features", "who"))[number % 7 % 4]
        names = wanted or ("who", "total", "features")
        arrays: dict[str, Array] = dict(zip(names, self._carrier.run(list(names), feeds), strict=True))
        return _case("carrier", number, feeds, wanted=wanted), Expected(arrays)

    def _ragged_request(self, number: int, *, rows: int) -> tuple[Case, Expected]:
        length = 1 + number % 37
        ids = 1 + 1000 * number + np.arange(rows * length, dtype=np.int64).reshape(rows, length)
        wanted = ((), ("total",), ("echo",), ("total", "echo"))[number % 7 % 4]
        answers = {"echo": ids, "total": ids.sum(axis=1, keepdims=True)}
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        arrays = {name: answers[name] for name in wanted or ("echo", "total")}
        return _case("ragged", number, feeds, wanted=wanted), Expected(arrays)

    def _image_request(self, number: int, *, rows: int) -> tuple[Case, Expected]:
        tier = TIERS[number // 6 % 2]
        chosen = [(7 * number + row) % len(self._images) for row in range(rows)]
        case = _case("fashion", number, {"image": self._images[chosen]}, tier=tier)
        return case, Expected({"logits": self._logits[tier][chosen]})

    def _text_request(self, number: int, *, rows: int) -> tuple[Case, Expected]:
        tier = TIERS[number // 6 % 2]
        chosen = tuple((7 * number + row) % len(self._texts) for row in range(rows))
        texts = np.empty(rows, dtype=object)
        texts[:] = [self._texts[index].encode() for index in chosen]
        vectors = self._vectors[tier]
        case = _case("minilm", number, {"text": texts}, tier=tier)
        candidates = vectors if tier == "int8" else None
        return case, Expected({"embedding": vectors[list(chosen)]}, candidates, chosen)


def rows_of(number: int) -> int:
    """Return how many rows a request has."""
    return 1 + number % 5


def _unlike(vectors: Array) -> list[int]:
    kept: list[int] = []
    for index, vector in enumerate(vectors):
        if not kept or float((vectors[kept] @ vector).max()) < _MOST_ALIKE:
            kept.append(index)
    return kept


def _fate(number: int) -> Fate:
    # 16 and 3, the number of protocols, have no common factor: each fate meets each protocol.
    return {3: Fate.ABANDONED, 8: Fate.HURRIED, 12: Fate.INVALID}.get(number % TURN, Fate.ANSWERED)


def _case(
    model: str, number: int, feeds: Mapping[str, Array], *, wanted: tuple[str, ...] = (), tier: str | None = None
) -> Case:
    """Say the tier by name, header or parameter, in turn."""
    way = number // 12 % 3
    return Case(
        str(number),
        f"{model}@{tier}" if tier and way == 0 else model,
        tuple(WireTensor.of(name, array) for name, array in feeds.items()),
        outputs=wanted,
        id=f"request {number}",
        parameters={"tier": tier} if tier and way == 2 else {},
        tier=tier if way == 1 else None,
        served_tier=tier or "dense",
    )


def _refused(case: Case, number: int) -> Case:
    """Return a request that has something wrong with it."""
    unknown = WireTensor.of("unheard_of", np.ones((1, 1), dtype=np.float32))
    wrong: dict[str, Any] = (
        {"inputs": (*case.inputs, unknown)},
        {"outputs": ("unheard_of",)},
        {"inputs": case.inputs[:-1]},
        {"model": f"{case.model.partition('@')[0]}@unheard_of", "tier": None, "parameters": {}},
        {"parameters": {"tier": "int8"}, "tier": "dense"},
    )[number // TURN % 5]
    return replace(case, **wrong)
