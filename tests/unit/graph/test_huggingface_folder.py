import json
from pathlib import Path
from typing import Any

import pytest

from serveprune.config.model import ImagePreprocessing, ModelConfig, TextPreprocessing
from serveprune.errors import InvalidArgument
from serveprune.graph.declared_preprocessing import store_preprocessing
from serveprune.graph.huggingface_folder import token_inputs, token_limit


def _folder(tmp_path: Path, **files: dict[str, Any]) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("model_type", "declared", "expected"),
    [
        ("bert", None, ("input_ids", "token_type_ids", "attention_mask")),
        ("roberta", None, ("input_ids", "attention_mask")),
        ("distilbert", ["input_ids", "token_type_ids", "attention_mask"], ("input_ids", "attention_mask")),
        ("bert", ["attention_mask", "input_ids"], ("input_ids", "attention_mask")),
    ],
)
def test_token_inputs_are_what_tokenizer_and_model_share(
    tmp_path: Path, model_type: str, declared: list[str] | None, expected: tuple[str, ...]
) -> None:
    settings = {} if declared is None else {"model_input_names": declared}
    folder = _folder(tmp_path, config={"model_type": model_type}, tokenizer_config=settings)
    assert token_inputs(folder) == expected


def test_token_inputs_are_refused_when_text_cannot_fill_them(tmp_path: Path) -> None:
    names = {"model_input_names": ["input_ids", "attention_mask", "bbox"]}
    folder = _folder(tmp_path, config={"model_type": "layoutlmv3"}, tokenizer_config=names)
    with pytest.raises(InvalidArgument, match="bbox"):
        token_inputs(folder)


@pytest.mark.parametrize(
    ("config", "sentence", "tokenizer", "expected"),
    [
        ({"max_position_embeddings": 512}, {"max_seq_length": 256}, {"model_max_length": 512}, 256),
        ({"max_position_embeddings": 512}, {}, {"model_max_length": 1e30}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, {}, 512),
        ({}, {}, {}, None),
    ],
)
def test_token_limit_is_the_smallest_that_is_stated(
    tmp_path: Path, config: dict[str, Any], sentence: dict[str, Any], tokenizer: dict[str, Any], expected: int | None
) -> None:
    config = {"model_type": "bert", **config}
    folder = _folder(tmp_path, config=config, sentence_bert_config=sentence, tokenizer_config=tokenizer)
    assert token_limit(folder) == expected


def _image(tmp_path: Path, **settings: Any) -> tuple[ImagePreprocessing, tuple[str, ...]]:
    folder = _folder(tmp_path, config={"model_type": "vit", "num_channels": 3}, preprocessor_config=settings)
    source = {"huggingface": str(folder), "task": "image-classification"}
    preprocessing, notes = store_preprocessing(ModelConfig.model_validate({"source": source}), folder=tmp_path)
    assert isinstance(preprocessing, ImagePreprocessing)
    return preprocessing, notes


def test_image_statistics_are_for_pixels_from_0_to_1_when_the_folder_rescales_otherwise(tmp_path: Path) -> None:
    # (x / 127.5 - 1): rescaled by 1 / 127.5, mean 1, deviation 1, is (x / 255 - 0.5) / 0.5.
    preprocessing, _ = _image(
        tmp_path, size={"height": 24, "width": 32}, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    )
    assert preprocessing.size == (24, 32)
    assert preprocessing.mean == pytest.approx((0.5,) * 3)
    assert preprocessing.std == pytest.approx((0.5,) * 3)
    assert preprocessing.target == "pixel_values"


def test_image_statistics_are_neutral_when_the_folder_does_not_normalize(tmp_path: Path) -> None:
    preprocessing, notes = _image(tmp_path, size=24, do_normalize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert (preprocessing.mean, preprocessing.std) == ((0.0,), (1.0,))
    assert notes == ()


def test_image_size_is_the_crop_when_the_folder_crops(tmp_path: Path) -> None:
    preprocessing, notes = _image(
        tmp_path, size={"shortest_edge": 256}, do_center_crop=True, crop_size={"height": 224, "width": 224}
    )
    assert preprocessing.size == (224, 224)
    assert len(notes) == 1
    assert "crops" in notes[0]


def test_given_preprocessing_wins_over_the_folder(tmp_path: Path) -> None:
    folder = _folder(tmp_path, config={"model_type": "bert", "max_position_embeddings": 40}, tokenizer={})
    other = tmp_path / "other.json"
    other.write_text('{"mine": 1}')
    model = ModelConfig.model_validate(
        {
            "source": {"huggingface": str(folder), "task": "sequence-classification"},
            "preprocessing": {"kind": "text", "tokenizer": str(other), "input": "sentence"},
        }
    )
    preprocessing, _ = store_preprocessing(model, folder=tmp_path)
    assert preprocessing == TextPreprocessing(tokenizer=Path("tokenizer.json"), max_length=40, input="sentence")
    assert (tmp_path / "tokenizer.json").read_text() == '{"mine": 1}'


def _text(folder: Path, tmp_path: Path) -> tuple[object, tuple[str, ...]]:
    source = {"huggingface": str(folder), "task": "feature-extraction"}
    return store_preprocessing(ModelConfig.model_validate({"source": source}), folder=tmp_path)


def test_text_preprocessing_is_declared_when_the_folder_has_a_tokenizer(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, config={"model_type": "bert"}, tokenizer={"a": 1}, tokenizer_config={"model_max_length": 24}
    )
    preprocessing, notes = _text(folder, tmp_path)
    assert preprocessing == TextPreprocessing(tokenizer=Path("tokenizer.json"), max_length=24)
    assert notes == ()
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_missing_tokenizer_is_noted(tmp_path: Path) -> None:
    preprocessing, notes = _text(_folder(tmp_path, config={"model_type": "bert"}), tmp_path)
    assert preprocessing is None
    assert "only token ids are accepted" in notes[0]
