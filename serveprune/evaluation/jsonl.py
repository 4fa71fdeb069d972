import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset_content import DatasetContent, Misfit, class_number, fitted
from serveprune.evaluation.picture_sample import PictureSample
from serveprune.oip.tensor import Array, TensorSpec
from serveprune.preprocessing.protocol import Preprocessor

_KEYS = ("text", "paired_text", "score", "image", "inputs", "label")


def read_jsonl(
    path: Path,
    *,
    inputs: Sequence[TensorSpec],
    preprocessor: Preprocessor | None,
    samples: int | None,
    pictures_decoded: int | None = None,
) -> DatasetContent:
    """Read one object per line (see `load_dataset`); problems are collected, not raised.

    A text that occurs in several scored pairs becomes one sample. A pair that would exceed ``samples`` ends
    the reading.
    """
    reader = _Reader(path, {spec.name: spec for spec in inputs}, preprocessor, pictures_decoded)
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if samples is not None and len(reader.content.samples) >= samples:
                    break
                if line.strip():
                    reader.read(number, line)
    except UnicodeDecodeError as error:
        reader.content.problems.append(f"{path}: expected UTF-8, {error.reason} at byte {error.start}")
    content = reader.content
    if samples is not None and len(content.samples) > samples:
        # Only a pair's second text can be one too many.
        del content.samples[samples:]
        content.pairs = [pair for pair in content.pairs if max(pair[:2]) < samples]
    content.problems.extend(reader.mixing_problems())
    return content


class _Reader:
    """Turns lines into samples, and remembers what belongs together."""

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        preprocessor: Preprocessor | None,
        pictures_decoded: int | None,
    ) -> None:
        self.content = DatasetContent()
        self._path = path
        self._specs = specs
        self._preprocessor = preprocessor
        self._paired_texts: dict[str, int] = {}
        self._kinds: dict[str, int] = {}
        self._pictures_left = pictures_decoded
        self._picture_shapes: dict[str, tuple[int, ...]] = {}

    def read(self, number: int, line: str) -> None:
        """Take one line in; what is wrong with it becomes a problem."""
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise Misfit(f"expected a JSON object, got {type(record).__name__}")
            unknown = sorted(record.keys() - set(_KEYS))
            if unknown:
                raise Misfit(f"key {unknown[0]!r}: expected one of {', '.join(_KEYS)}")
            if "paired_text" in record or "score" in record:
                self._read_pair(record)
            else:
                self._read_sample(record)
        except json.JSONDecodeError as error:
            self._complain(number, f"expected JSON, {error.msg} at column {error.colno}")
        except (Misfit, InvalidArgument) as error:
            self._complain(number, str(error))
        else:
            self._kinds.setdefault(_kind(record), number)

    def mixing_problems(self) -> list[str]:
        """Say which lines carry labels or scores while others do not."""
        if len(self._kinds) < 2:
            return []
        found = ", ".join(f"{kind} (first in line {number})" for kind, number in self._kinds.items())
        return [f"{self._path}: expected lines of one kind, got {found}"]

    def _complain(self, number: int, problem: str) -> None:
        self.content.problems.append(f"{self._path}:{number}: {problem}")

    def _read_pair(self, record: Mapping[str, Any]) -> None:
        if record.keys() != {"text", "paired_text", "score"}:
            raise Misfit(f"expected a scored pair with the keys text, paired_text, score, got {', '.join(record)}")
        score = record["score"]
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise Misfit(f"key 'score': expected a finite number, got {score!r}")
        first, second = (self._paired_sample(record, key) for key in ("text", "paired_text"))
        self.content.pairs.append((first, second, float(score)))

    def _paired_sample(self, record: Mapping[str, Any], key: str) -> int:
        text = record[key]
        if not isinstance(text, str) or text not in self._paired_texts:
            self.content.samples.append(self._checked(self._preprocessed("text", _text(record, key).encode())))
            self._paired_texts[text] = len(self.content.samples) - 1
        return self._paired_texts[text]

    def _read_sample(self, record: Mapping[str, Any]) -> None:
        sample: dict[str, Array] = {}
        if "text" in record:
            sample |= self._preprocessed("text", _text(record, "text").encode())
        if "inputs" in record:
            sample |= self._inputs(record["inputs"])
        checked = self._checked(self._with_picture(record["image"], sample) if "image" in record else sample)
        if "label" in record:
            try:
                label = class_number(record["label"])
            except Misfit as error:
                raise Misfit(f"key 'label': {error}") from error
            self.content.labels.append(label)
        self.content.samples.append(checked)

    def _preprocessed(self, kind: str, value: bytes) -> dict[str, Array]:
        if self._preprocessor is None or self._preprocessor.kind != kind:
            raise Misfit(f"key {kind!r}: expected inputs, because the model has no {kind} preprocessing")
        return {name: array[0] for name, array in self._preprocessor([value]).items()}

    def _with_picture(self, name: Any, others: dict[str, Array]) -> Mapping[str, Array]:
        file = self._picture(name)
        if self._pictures_left != 0 or not self._picture_shapes:
            try:
                content = file.read_bytes()
            except OSError as error:
                raise Misfit(f"key 'image': expected a readable file, {error}") from error
            decoded = self._preprocessed("image", content)
            self._picture_shapes = {target: array.shape for target, array in decoded.items()}
            if self._pictures_left:
                self._pictures_left -= 1
        assert self._preprocessor is not None
        return PictureSample(file, self._preprocessor, shapes=self._picture_shapes, others=others)

    def _picture(self, name: Any) -> Path:
        """Return the file; a set may come from anywhere, and must not name any file of the machine."""
        if not isinstance(name, str):
            raise Misfit(f"key 'image': expected the name of a file, got {name!r}")
        folder = self._path.parent.resolve()
        try:
            file = (folder / name).resolve()
            is_file = file.is_file()
        except (OSError, ValueError) as error:
            raise Misfit(f"key 'image': expected a file name, got {name!r}: {error}") from error
        if not file.is_relative_to(folder):
            raise Misfit(f"key 'image': expected a file below {folder}, got {name!r}")
        if not is_file:
            raise Misfit(f"key 'image': expected a file at {file}, there is none")
        return file

    def _inputs(self, value: Any) -> dict[str, Array]:
        if not isinstance(value, dict):
            raise Misfit(f"key 'inputs': expected an object of graph inputs, got {type(value).__name__}")
        arrays = {}
        for name, nested in value.items():
            if name not in self._specs:
                raise Misfit(f"key 'inputs': expected graph inputs ({', '.join(self._specs)}), got {name!r}")
            try:
                arrays[name] = fitted(np.array(nested), self._specs[name], batched=False)
            except (ValueError, OverflowError) as error:
                raise Misfit(f"input {name!r}: {error}") from error
        return arrays

    def _checked(self, sample: Mapping[str, Array]) -> Mapping[str, Array]:
        missing = [name for name in self._specs if name not in sample]
        if missing:
            raise Misfit(f"expected a value for every graph input, there is none for {', '.join(missing)}")
        return sample


def _text(record: Mapping[str, Any], key: str) -> str:
    text = record[key]
    if not isinstance(text, str):
        raise Misfit(f"key {key!r}: expected a text, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Misfit(f"key {key!r}: expected a text, got half a surrogate pair") from error
    return text


def _kind(record: Mapping[str, Any]) -> str:
    if "score" in record:
        return "scored pairs"
    return "labelled samples" if "label" in record else "unlabelled samples"
