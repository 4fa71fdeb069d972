import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from serveprune.config.model import TextPreprocessing
from serveprune.errors import ConfigError, InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

# The tokenizers library reads this at every call. Its thread pool has one thread per core and would compete
# with the backend's threads, which the server sizes itself; an operator's own setting wins.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_TEXT_BYTES = 2**20
"""A longer text is refused: all of it is tokenised before it is cut, at roughly one second per MiB."""

INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS = "input_ids", "attention_mask", "token_type_ids"
_USUAL_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


class TextPreprocessor:
    """Texts (UTF-8) to token ids, with the tokenizer of a ``tokenizer.json``.

    Texts are cut to ``max_length`` tokens (special tokens included; default: what tokenizer.json says) and
    padded on the right to the longest of the call, or to the graph's sequence length where that is fixed.
    """

    kind: Literal["text"] = "text"

    def __init__(self, config: TextPreprocessing, *, folder: Path, inputs: Sequence[TensorSpec]) -> None:
        self._targets = _targets(inputs)
        self.targets = tuple(spec.name for spec in self._targets)
        self.input = TensorSpec(config.input, Datatype.BYTES, (DYNAMIC,))
        self._length = _fixed_length(self._targets)
        self._tokenizer = _load(folder / config.tokenizer)
        pad_id, pad_type_id = _pad_ids(self._tokenizer)
        self._pads = {INPUT_IDS: pad_id, ATTENTION_MASK: 0, TOKEN_TYPE_IDS: pad_type_id}
        _limit_length(self._tokenizer, max_length=config.max_length, sequence_length=self._length)
        _check_ids_fit(self._tokenizer, self._targets)

    @property
    def padding(self) -> Mapping[str, int]:
        """See `Preprocessor.padding`: empty without an attention mask, and where the graph fixes the length."""
        if ATTENTION_MASK not in self.targets or self._length is not None:
            return {}
        return {name: self._pads[name] for name in self.targets}

    def __call__(self, values: Sequence[bytes]) -> dict[str, Array]:
        """See `Preprocessor.__call__`; each array is ``(N, L)`` in the integer type of its graph input."""
        if not values:
            raise InvalidArgument(f"input {self.input.name!r}: expected at least one text, got none")
        texts = [self._decode(index, value) for index, value in enumerate(values)]
        # The batch form even for one text: unlike `encode` it lets other threads run meanwhile.
        encodings = self._tokenizer.encode_batch_fast(texts)
        lengths = [len(encoding.ids) for encoding in encodings]
        self._check_lengths(lengths)
        length = self._length or max(lengths)
        arrays = {}
        for spec in self._targets:
            rows = np.full((len(values), length), self._pads[spec.name], dtype=spec.datatype.dtype)
            for row, encoding in zip(rows, encodings, strict=True):
                row[: len(encoding.ids)] = _column(encoding, spec.name)
            arrays[spec.name] = rows
        return arrays

    def _decode(self, index: int, value: bytes) -> str:
        if len(value) > MAX_TEXT_BYTES:
            raise InvalidArgument(
                f"{self._element(index)}: expected a text of at most {MAX_TEXT_BYTES} bytes, got {len(value)}; split it"
            )
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"{self._element(index)}: expected UTF-8 text, got byte 0x{value[error.start]:02x} at "
                f"position {error.start} ({error.reason})"
            ) from error

    def _check_lengths(self, lengths: Sequence[int]) -> None:
        for index, length in enumerate(lengths):
            if length == 0:
                raise InvalidArgument(f"{self._element(index)}: expected text, got nothing the tokenizer knows")
            if self._length is not None and length > self._length:
                raise InvalidArgument(
                    f"{self._element(index)}: expected at most {self._length} tokens, got {length}; shorten it"
                )
        if not self.padding and self._length is None and len(set(lengths)) > 1:
            raise InvalidArgument(
                f"input {self.input.name!r}: expected texts of the same number of tokens, because this model has "
                f"no {ATTENTION_MASK}, got {min(lengths)} to {max(lengths)}; send them one by one"
            )

    def _element(self, index: int) -> str:
        return f"input {self.input.name!r}, element {index}"


def _targets(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    targets = tuple(spec for spec in inputs if spec.name in (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS))
    problems = []
    if not any(spec.name == INPUT_IDS for spec in targets):
        names = ", ".join(spec.name for spec in inputs) or "none"
        problems.append(f"preprocessing: text needs a graph input named {INPUT_IDS}, the graph takes: {names}")
    for spec in targets:
        # Some exporters leave the mask as a boolean or a float; ids are always integers.
        kinds = "iubf" if spec.name == ATTENTION_MASK else "iu"
        if spec.datatype.dtype.kind not in kinds or spec.datatype is Datatype.BF16 or len(spec.shape) != 2:
            problems.append(
                f"preprocessing: graph input {spec.name}: expected an integer type and shape (batch, sequence), "
                f"got {spec.datatype} {list(spec.shape)}"
            )
    if problems:
        raise ConfigError(problems)
    return targets


def _fixed_length(targets: Sequence[TensorSpec]) -> int | None:
    fixed = {spec.shape[1] for spec in targets} - {DYNAMIC}
    if len(fixed) > 1:
        raise ConfigError([f"preprocessing: the graph's text inputs fix different lengths: {sorted(fixed)}"])
    return next(iter(fixed), None)


def _load(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ConfigError([f"preprocessing.tokenizer: {path}: expected a tokenizer.json, there is no such file"])
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for everything
        raise ConfigError([f"preprocessing.tokenizer: {path}: expected a tokenizer.json, {error}"]) from error
    return tokenizer


def _pad_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return pad id and pad type id, and stop the tokenizer from padding by itself.

    Sentence encoders are often saved with padding to a fixed 128 tokens, which would cost more than the model.
    """
    declared = tokenizer.padding
    if declared is not None:
        tokenizer.no_padding()
        return declared["pad_id"], declared["pad_type_id"]
    known = (tokenizer.token_to_id(token) for token in _USUAL_PAD_TOKENS)
    # Where the mask is 0 the id does not matter, it only has to exist.
    return next((token_id for token_id in known if token_id is not None), 0), 0


def _limit_length(tokenizer: Tokenizer, *, max_length: int | None, sequence_length: int | None) -> None:
    declared = tokenizer.truncation or {}
    limits = [limit for limit in (max_length or declared.get("max_length"), sequence_length) if limit is not None]
    if not limits:
        return
    special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
    if min(limits) <= special_tokens:
        # The library would silently not cut at all.
        problem = (
            f"preprocessing.max_length: expected more than the {special_tokens} special tokens that every text gets, "
            f"got {min(limits)}"
        )
        raise ConfigError([problem])
    tokenizer.enable_truncation(min(limits), direction=declared.get("direction", "right"))


def _check_ids_fit(tokenizer: Tokenizer, targets: Sequence[TensorSpec]) -> None:
    ids = next(spec for spec in targets if spec.name == INPUT_IDS)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest > np.iinfo(ids.datatype.dtype).max:
        problem = (
            f"preprocessing.tokenizer: token ids reach {largest}, graph input {ids.name} is {ids.datatype}; this "
            "tokenizer belongs to another model"
        )
        raise ConfigError([problem])


def _column(encoding: Any, name: str) -> list[int]:
    if name == INPUT_IDS:
        ids: list[int] = encoding.ids
        return ids
    column: list[int] = encoding.attention_mask if name == ATTENTION_MASK else encoding.type_ids
    return column
