import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from serveprune.config.model import TextPreprocessing
from serveprune.errors import ConfigError, InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import TensorSpec
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor
from serveprune.preprocessing.text import MAX_TEXT_BYTES, TextPreprocessor

VOCABULARY = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "red": 3, "boot": 4, "##s": 5, "small": 6, "[PAD]": 7}


def sequence(name: str, *, datatype: Datatype = Datatype.INT64, length: int = -1) -> TensorSpec:
    return TensorSpec(name, datatype, (-1, length))


BERT_INPUTS = (sequence("input_ids"), sequence("attention_mask"), sequence("token_type_ids"))


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    # As sentence encoders are saved: padded to a fixed length.
    tokenizer.enable_padding(pad_id=7, pad_token="[PAD]", length=16)
    return tokenizer


def load(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    inputs: Sequence[TensorSpec] = BERT_INPUTS,
    max_length: int | None = None,
) -> Preprocessor:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = TextPreprocessing(tokenizer=Path("tokenizer.json"), max_length=max_length)
    return load_preprocessor(config, folder=folder, inputs=inputs)


def test_texts_become_padded_ids_mask_and_types(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preprocessor = load(tokenizer, tmp_path)

    arrays = preprocessor([b"red boots", b"Small"])

    assert arrays.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    np.testing.assert_array_equal(arrays["input_ids"], [[1, 3, 4, 5, 2], [1, 6, 2, 7, 7]])
    np.testing.assert_array_equal(arrays["attention_mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(arrays["token_type_ids"], np.zeros((2, 5)))
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_preprocessor_describes_itself(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preprocessor = load(tokenizer, tmp_path)

    assert preprocessor.kind == "text"
    assert preprocessor.input == TensorSpec("text", Datatype.BYTES, (-1,))
    assert preprocessor.targets == ("input_ids", "attention_mask", "token_type_ids")
    assert preprocessor.padding == {"input_ids": 7, "attention_mask": 0, "token_type_ids": 0}


def test_only_existing_inputs_are_filled_in_their_own_types(tokenizer: Tokenizer, tmp_path: Path) -> None:
    inputs = (
        sequence("attention_mask", datatype=Datatype.BOOL),
        sequence("input_ids", datatype=Datatype.INT32),
        TensorSpec("temperature", Datatype.FP32, (-1, 1)),
    )

    arrays = load(tokenizer, tmp_path, inputs=inputs)([b"red"])

    assert {name: array.dtype for name, array in arrays.items()} == {
        "attention_mask": np.dtype(bool),
        "input_ids": np.dtype(np.int32),
    }


def test_text_is_cut_to_max_length_with_special_tokens_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    arrays = load(tokenizer, tmp_path, max_length=4)([b"red red red red red red", b"boot"])

    np.testing.assert_array_equal(arrays["input_ids"], [[1, 3, 3, 2], [1, 4, 2, 7]])


def test_text_is_cut_as_the_tokenizer_says_when_config_does_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.enable_truncation(3)

    np.testing.assert_array_equal(load(tokenizer, tmp_path)([b"red boot"])["input_ids"], [[1, 3, 2]])


def test_text_is_padded_and_cut_to_graph_length_when_that_is_fixed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    inputs = (sequence("input_ids", length=5), sequence("attention_mask", length=5))
    preprocessor = load(tokenizer, tmp_path, inputs=inputs, max_length=100)

    np.testing.assert_array_equal(preprocessor([b"red"])["input_ids"], [[1, 3, 2, 7, 7]])
    np.testing.assert_array_equal(preprocessor([b"red " * 9])["input_ids"], [[1, 3, 3, 3, 2]])
    assert preprocessor.padding == {}


def test_lengths_must_agree_when_graph_has_no_mask(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preprocessor = load(tokenizer, tmp_path, inputs=BERT_INPUTS[:1])

    assert preprocessor.padding == {}
    np.testing.assert_array_equal(preprocessor([b"red", b"boot"])["input_ids"], [[1, 3, 2], [1, 4, 2]])
    with pytest.raises(InvalidArgument, match=r"same number of tokens.*no attention_mask, got 3 to 4"):
        preprocessor([b"red", b"red boot"])


def test_pad_id_is_found_by_token_when_tokenizer_declares_no_padding(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.no_padding()

    assert load(tokenizer, tmp_path).padding["input_ids"] == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "'text': expected at least one text, got none"),
        ([b"red", b"caf\xe9 au lait"], r"'text', element 1: expected UTF-8 text, got byte 0xe9 at position 3"),
        ([b"r" * (MAX_TEXT_BYTES + 1)], f"element 0: expected a text of at most {MAX_TEXT_BYTES} bytes"),
    ],
)
def test_text_is_refused_with_reason_when_unusable(
    values: list[bytes], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        load(tokenizer, tmp_path)(values)


def test_text_without_tokens_is_refused_when_tokenizer_adds_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    preprocessor = load(tokenizer, tmp_path)

    with pytest.raises(InvalidArgument, match="element 1: expected text, got nothing"):
        preprocessor([b"red", b"  "])


def test_longest_accepted_text_is_tokenised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    arrays = load(tokenizer, tmp_path, max_length=8)([b"a" * MAX_TEXT_BYTES])

    np.testing.assert_array_equal(arrays["input_ids"], [[1, 0, 2]])


def test_results_are_right_when_called_from_many_threads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preprocessor = load(tokenizer, tmp_path)
    requests = [[b"red " * (1 + index % 7), b"boots"] for index in range(200)]
    expected = [preprocessor(values)["input_ids"] for values in requests]

    with ThreadPoolExecutor(8) as executor:
        results = list(executor.map(lambda values: preprocessor(values)["input_ids"], requests))

    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_tokenizer_starts_no_threads_of_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preprocessor = load(tokenizer, tmp_path)
    before = set(Path("/proc/self/task").iterdir())

    preprocessor([b"red boots"] * 500)

    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert set(Path("/proc/self/task").iterdir()) <= before


def runs_beside(work: Callable[[], object]) -> bool:
    """Tell whether this thread gets to run before the work of another thread is finished."""
    started, finished = threading.Event(), threading.Event()

    def other() -> None:
        started.set()
        work()
        finished.set()

    worker = threading.Thread(target=other)
    worker.start()
    started.wait()
    beside = not finished.is_set()
    worker.join()
    return beside


def test_other_threads_run_while_a_long_text_is_tokenised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preprocessor = load(tokenizer, tmp_path, max_length=8)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that the interpreter lock is never taken from a thread that does not give it up
    try:
        # On a busy machine this thread may come too late by chance.
        assert any(runs_beside(lambda: preprocessor([b"red boots " * 100_000])) for _ in range(5))
    finally:
        sys.setswitchinterval(usual)


@pytest.mark.parametrize(
    ("inputs", "max_length", "message"),
    [
        ((TensorSpec("pixels", Datatype.FP32, (-1, 3)),), None, "needs a graph input named input_ids.*: pixels"),
        ((sequence("input_ids", datatype=Datatype.FP32),), None, r"input_ids: expected an integer type .*FP32"),
        ((TensorSpec("input_ids", Datatype.INT64, (-1,)),), None, r"shape \(batch, sequence\), got INT64 \[-1\]"),
        ((sequence("input_ids", length=4), sequence("attention_mask", length=8)), None, r"different lengths: \[4, 8\]"),
        (BERT_INPUTS, 2, "more than the 2 special tokens.*got 2"),
        ((*BERT_INPUTS, TensorSpec("text", Datatype.BYTES, (-1,))), None, "no graph input has, got 'text'"),
    ],
)
def test_loading_is_refused_when_tokenizer_and_graph_do_not_fit(
    inputs: Sequence[TensorSpec], max_length: int | None, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tokenizer, tmp_path, inputs=inputs, max_length=max_length)


def test_loading_is_refused_when_ids_exceed_the_input_type(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.add_tokens([f"word{index}" for index in range(200)])

    with pytest.raises(ConfigError, match="token ids reach 207, graph input input_ids is INT8"):
        load(tokenizer, tmp_path, inputs=(sequence("input_ids", datatype=Datatype.INT8),))


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", json.dumps({"model": {"type": "Nope"}}).encode()])
def test_loading_is_refused_when_tokenizer_file_is_broken(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    config = TextPreprocessing(tokenizer=Path("tokenizer.json"))

    with pytest.raises(ConfigError, match=r"tokenizer.json: expected a tokenizer.json, "):
        TextPreprocessor(config, folder=tmp_path, inputs=BERT_INPUTS)


def test_loading_is_refused_when_tokenizer_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        TextPreprocessor(TextPreprocessing(tokenizer=Path("gone.json")), folder=tmp_path, inputs=BERT_INPUTS)
