import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from serveprune.config.model import DatasetConfig, ImagePreprocessing, TextPreprocessing
from serveprune.errors import ConfigError, FailedPrecondition
from serveprune.evaluation.dataset import Dataset, load_dataset
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import TensorSpec
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor

PIXELS = TensorSpec("pixels", Datatype.FP32, (-1, 1, 2, 2))
IDS = TensorSpec("input_ids", Datatype.INT64, (-1, -1))
MASK = TensorSpec("attention_mask", Datatype.INT64, (-1, -1))
AMOUNT = TensorSpec("amount", Datatype.FP32, (-1,))


@pytest.fixture
def text(tmp_path: Path) -> Preprocessor:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "red": 2, "boot": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = TextPreprocessing(tokenizer=Path("tokenizer.json"))
    return load_preprocessor(config, folder=tmp_path, inputs=(IDS, MASK))


@pytest.fixture
def image(tmp_path: Path) -> Preprocessor:
    return load_preprocessor(ImagePreprocessing(size=2, channels=1), folder=tmp_path, inputs=(PIXELS,))


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


def jsonl(folder: Path, *lines: Any) -> Path:
    path = folder / "set.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def load(
    path: Path, *inputs: TensorSpec, preprocessor: Preprocessor | None = None, samples: int | None = None
) -> Dataset:
    return load_dataset(DatasetConfig(file=path, samples=samples), inputs=inputs, preprocessor=preprocessor)


def problems(path: Path, *inputs: TensorSpec, preprocessor: Preprocessor | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, *inputs, preprocessor=preprocessor)
    assert all(problem.startswith((str(path), "...")) for problem in raised.value.problems)
    return [problem.removeprefix(str(path)).removeprefix(": ") for problem in raised.value.problems]


def test_npz_gives_samples_and_labels(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)

    dataset = load(npz(tmp_path, pixels=pixels, label=np.array([5, 0, 2], dtype=np.uint8)), PIXELS)

    assert len(dataset) == 3
    np.testing.assert_array_equal(dataset.samples[2]["pixels"], [[[8, 9], [10, 11]]])
    assert dataset.samples[2]["pixels"].dtype == np.float32
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [5, 0, 2]
    assert dataset.labels.dtype == np.int64


def test_npz_is_read_as_far_as_config_says(tmp_path: Path) -> None:
    dataset = load(npz(tmp_path, amount=np.arange(9.0), label=np.arange(9)), AMOUNT, samples=4)

    assert [sample["amount"].tolist() for sample in dataset.samples] == [0, 1, 2, 3]
    assert dataset.labels is not None
    assert len(dataset.labels) == 4


def test_npz_token_ids_are_padded_when_the_preprocessor_says_how(tmp_path: Path, text: Preprocessor) -> None:
    path = npz(tmp_path, input_ids=np.array([[2, 3]], dtype=np.int32), attention_mask=np.ones((1, 2), dtype=np.int32))

    dataset = load(path, IDS, MASK, preprocessor=text)

    assert dataset.padding == {"input_ids": 1, "attention_mask": 0}
    assert dataset.samples[0]["input_ids"].dtype == np.int64


def test_everything_wrong_with_an_npz_is_said_at_once(tmp_path: Path) -> None:
    path = npz(
        tmp_path,
        pixels=np.zeros((3, 2, 2, 1), dtype=np.float32),
        input_ids=np.ones((3, 4)),
        extra=np.zeros(3),
        label=np.array([0.5]),
    )

    assert problems(path, PIXELS, IDS, AMOUNT) == [
        "array 'extra': expected one of ['amount', 'input_ids', 'label', 'pixels']",
        "array 'pixels': expected FP32 (*, 1, 2, 2), got float32 (3, 2, 2, 1)",
        "array 'input_ids': expected INT64, got float64 values that do not fit",
        "expected an array 'amount' for the graph input, there is none",
        "array 'label': expected integers of shape (*), got float64 of shape (1,)",
    ]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"amount": np.array([1.0, np.nan])}, "array 'amount': expected finite numbers, got NaN or infinity"),
        ({"amount": np.array([1e300])}, "array 'amount': expected finite numbers, got NaN or infinity"),
        ({"amount": np.array(["a"])}, "array 'amount': expected numbers (FP32), got <U1"),
        ({"amount": np.zeros(0)}, "expected at least one sample, got none"),
        ({"amount": np.array(1.0)}, "array 'amount': expected FP32 (*), got float64 ()"),
        (
            {"amount": np.zeros(2), "label": np.arange(3)},
            "expected arrays with the same number of samples, got {'amount': 2, 'label': 3}",
        ),
        ({"amount": np.zeros(1), "label": np.array([-1])}, "array 'label': expected a whole number from 0, got"),
    ],
)
def test_npz_is_refused_with_array_and_reason(arrays: Any, expected: str, tmp_path: Path) -> None:
    (problem,) = problems(npz(tmp_path, **arrays), AMOUNT)

    assert problem.startswith(expected)


def test_integers_are_refused_when_the_input_type_cannot_hold_them(tmp_path: Path) -> None:
    small = TensorSpec("input_ids", Datatype.INT8, (-1, -1))

    assert problems(npz(tmp_path, input_ids=np.array([[300]])), small) == [
        "array 'input_ids': expected INT8, got int64 values that do not fit"
    ]


def test_pickles_in_an_npz_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    objects = np.empty(1, dtype=object)
    objects[0] = Bomb()
    inside = problems(npz(tmp_path, amount=objects), AMOUNT)
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Bomb()))

    assert "array 'amount': expected plain numbers" in inside[0]
    assert "expected an archive of arrays" in problems(bare, AMOUNT)[0]
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "a single array"])
def test_npz_is_refused_when_it_is_broken(damage: str, tmp_path: Path) -> None:
    path = npz(tmp_path, amount=np.random.default_rng(0).random(5000))
    whole = path.read_bytes()
    if damage == "a single array":
        np.save(tmp_path / "one.npy", np.zeros(3))
        whole = (tmp_path / "one.npy").read_bytes()
    path.write_bytes({"truncated": whole[:2000], "garbage": b"nonsense" * 9, "empty": b""}.get(damage, whole))

    assert problems(path, AMOUNT)[0].startswith("expected an archive of arrays as numpy.savez writes it, ")


def test_jsonl_texts_become_token_ids(tmp_path: Path, text: Preprocessor) -> None:
    path = jsonl(tmp_path, {"text": "red boot", "label": 1}, "", {"text": "boot", "label": 0})

    dataset = load(path, IDS, MASK, preprocessor=text)

    assert [sample["input_ids"].tolist() for sample in dataset.samples] == [[2, 3], [3]]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(next(dataset.batches(2))[1]["input_ids"], [[3, 1], [2, 3]])


def test_jsonl_pairs_share_samples_of_equal_texts(tmp_path: Path, text: Preprocessor) -> None:
    path = jsonl(
        tmp_path,
        {"text": "red", "paired_text": "boot", "score": 0.7},
        {"text": "boot", "paired_text": "red boot", "score": 3},
    )

    dataset = load(path, IDS, MASK, preprocessor=text)

    assert [sample["input_ids"].tolist() for sample in dataset.samples] == [[2], [3], [2, 3]]
    assert dataset.pairs == ((0, 1, 0.7), (1, 2, 3.0))


@pytest.mark.parametrize(("samples", "texts", "pairs"), [(1, 1, 0), (2, 2, 1), (3, 3, 1), (4, 4, 2), (9, 4, 2)])
def test_jsonl_is_read_as_far_as_config_says(
    samples: int, texts: int, pairs: int, tmp_path: Path, text: Preprocessor
) -> None:
    path = jsonl(
        tmp_path,
        {"text": "a", "paired_text": "b", "score": 0},
        {"text": "c", "paired_text": "d", "score": 1},
    )

    dataset = load(path, IDS, MASK, preprocessor=text, samples=samples)

    assert (len(dataset), len(dataset.pairs)) == (texts, pairs)


def test_jsonl_images_are_read_beside_the_file(tmp_path: Path, image: Preprocessor) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("L", (2, 2), 255).save(tmp_path / "pictures" / "white.png")

    dataset = load(jsonl(tmp_path, {"image": "pictures/white.png"}), PIXELS, preprocessor=image)

    np.testing.assert_array_equal(dataset.samples[0]["pixels"], np.ones((1, 2, 2)))
    assert dataset.labels is None


def test_pictures_take_no_memory_until_they_are_asked_for(tmp_path: Path) -> None:
    pixels = TensorSpec("pixels", Datatype.FP32, (-1, 3, 128, 128))
    preprocessor = load_preprocessor(ImagePreprocessing(size=128), folder=tmp_path, inputs=(pixels,))
    Image.new("RGB", (8, 8)).save(tmp_path / "boot.png")
    path = jsonl(tmp_path, *[{"image": "boot.png"}] * 200)

    tracemalloc.start()
    try:
        dataset = load(path, pixels, preprocessor=preprocessor)
        rows = sum(len(feeds["pixels"]) for _, feeds in dataset.head(190).batches(10))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert rows == 190
    # All of them would take 200 * 3 * 128 * 128 * 4 bytes, 39 million.
    assert peak_bytes < 12_000_000


def test_pictures_beyond_the_bound_only_have_to_exist(tmp_path: Path, image: Preprocessor) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "boot.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    path = jsonl(tmp_path, {"image": "boot.png"}, {"image": "broken.png"}, {"image": "gone.png"})
    config = DatasetConfig(file=path, samples=None)

    with pytest.raises(ConfigError) as raised:
        load_dataset(config, inputs=(PIXELS,), preprocessor=image, pictures_decoded=1)

    (problem,) = raised.value.problems
    assert problem.startswith(f"{path}:3: key 'image': expected a file at ")
    assert [line.split(":")[1] for line in problems(path, PIXELS, preprocessor=image)] == ["2", "3"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.png", "link.png", ".", "a\0b"])
def test_pictures_are_refused_when_they_are_no_files_below_the_sets_folder(
    tmp_path: Path, image: Preprocessor, name: str
) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "outside.png")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")

    (problem,) = problems(jsonl(folder, {"image": name}), PIXELS, preprocessor=image)

    assert ":1: key 'image': expected a file" in problem


def test_picture_that_vanished_is_named(tmp_path: Path, image: Preprocessor) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "boot.png")
    dataset = load(jsonl(tmp_path, {"image": "boot.png"}), PIXELS, preprocessor=image)
    (tmp_path / "boot.png").unlink()

    with pytest.raises(FailedPrecondition, match=r"boot\.png could be read before"):
        next(dataset.batches(1))


def test_jsonl_inputs_may_stand_beside_a_text(tmp_path: Path, text: Preprocessor) -> None:
    path = jsonl(tmp_path, {"text": "red", "inputs": {"amount": 2}})

    dataset = load(path, IDS, MASK, AMOUNT, preprocessor=text)

    assert dataset.samples[0]["amount"] == np.float32(2)
    assert dataset.samples[0]["input_ids"].tolist() == [2]


def test_everything_wrong_with_a_jsonl_is_said_at_once(tmp_path: Path, text: Preprocessor) -> None:
    (tmp_path / "note.txt").write_text("")
    path = jsonl(
        tmp_path,
        '{"text": "red"',
        "[1]",
        {"txet": "red"},
        {"text": 5},
        {"text": "  "},
        {"image": "gone.png"},
        {"inputs": {"input_ids": [1, 2]}},
        {"inputs": {"input_ids": [1, 2.5], "attention_mask": [1, 1]}},
        {"inputs": {"input_ids": [[1], [1, 2]], "attention_mask": [1]}},
        {"inputs": {"pixels": 1}},
        {"inputs": []},
        {"text": "red", "label": "boot"},
        {"text": "red", "label": True},
        {"text": "red", "score": 1},
        {"text": "red", "paired_text": "boot", "score": "high"},
        '{"text": "red", "paired_text": "boot", "score": NaN}',
        r'{"text": "\ud800"}',
        {},
    )

    found = problems(path, IDS, MASK, preprocessor=text)

    starts = [
        ":1: expected JSON, ",
        ":2: expected a JSON object, got list",
        ":3: key 'txet': expected one of text, paired_text, score, image, inputs, label",
        ":4: key 'text': expected a text, got int",
        ":5: input 'text', element 0: expected text, got nothing",
        ":6: key 'image': expected a file at ",
        ":7: expected a value for every graph input, there is none for attention_mask",
        ":8: input 'input_ids': expected INT64, got float64 values that do not fit",
        ":9: input 'input_ids': ",
        ":10: key 'inputs': expected graph inputs (input_ids, attention_mask), got 'pixels'",
        ":11: key 'inputs': expected an object of graph inputs, got list",
        ":12: key 'label': expected a whole number from 0, got 'boot'",
        ":13: key 'label': expected a whole number from 0, got True",
        ":14: expected a scored pair with the keys text, paired_text, score, got text, score",
        ":15: key 'score': expected a finite number, got 'high'",
        ":16: key 'score': expected a finite number, got nan",
        ":17: key 'text': expected a text, got half a surrogate pair",
        ":18: expected a value for every graph input, there is none for input_ids, attention_mask",
    ]
    assert len(found) == len(starts)
    for problem, start in zip(found, starts, strict=True):
        assert problem.startswith(start)


def test_jsonl_is_refused_when_the_model_has_no_such_preprocessing(tmp_path: Path, text: Preprocessor) -> None:
    (tmp_path / "a.png").write_bytes(b"")

    assert problems(jsonl(tmp_path, {"image": "a.png"}), IDS, MASK, preprocessor=text) == [
        ":1: key 'image': expected inputs, because the model has no image preprocessing"
    ]
    assert problems(jsonl(tmp_path, {"text": "red"}), IDS, MASK) == [
        ":1: key 'text': expected inputs, because the model has no text preprocessing"
    ]


def test_jsonl_image_is_refused_when_missing_or_broken(tmp_path: Path, image: Preprocessor) -> None:
    (tmp_path / "note.png").write_text("not a picture")

    found = problems(jsonl(tmp_path, {"image": "gone.png"}, {"image": "note.png"}), PIXELS, preprocessor=image)

    assert found[0].startswith(f":1: key 'image': expected a file at {tmp_path / 'gone.png'}, ")
    assert found[1].startswith(":2: input 'image_bytes', element 0: expected a PNG or JPEG picture")


def test_jsonl_is_refused_when_only_some_lines_have_labels(tmp_path: Path, text: Preprocessor) -> None:
    path = jsonl(tmp_path, {"text": "red"}, {"text": "boot", "label": 1})

    assert problems(path, IDS, MASK, preprocessor=text) == [
        "expected lines of one kind, got unlabelled samples (first in line 1), labelled samples (first in line 2)"
    ]


def test_jsonl_is_refused_when_padded_inputs_differ_in_length(tmp_path: Path, text: Preprocessor) -> None:
    path = jsonl(tmp_path, {"inputs": {"input_ids": [1, 2], "attention_mask": [1]}})

    assert problems(path, IDS, MASK, preprocessor=text) == [
        "sample 0: expected inputs of one length, got {'input_ids': 2, 'attention_mask': 1}"
    ]


def test_problems_are_bounded_when_every_line_is_wrong(tmp_path: Path) -> None:
    found = problems(jsonl(tmp_path, *["x"] * 500), AMOUNT)

    assert len(found) == 51
    assert found[-1] == "... and 450 more problems like these"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "expected at least one sample, got none"), (b'{"text": "caf\xe9"}', "expected UTF-8, invalid")],
)
def test_jsonl_is_refused_when_empty_or_not_utf8(
    content: bytes, expected: str, tmp_path: Path, text: Preprocessor
) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)

    assert problems(path, IDS, MASK, preprocessor=text)[0].startswith(expected)


def test_dataset_is_refused_when_file_is_missing(tmp_path: Path) -> None:
    assert problems(tmp_path / "gone.npz", AMOUNT) == ["expected a file, there is none"]
