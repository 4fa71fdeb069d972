from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from serveprune.config.model import (
    HuggingFaceSource,
    ImagePreprocessing,
    InputConfig,
    ModelConfig,
    OnnxSource,
    Preprocessing,
    TextPreprocessing,
)
from serveprune.oip.datatype import Datatype


def test_input_config_offers_the_datatypes_that_numpy_can_feed() -> None:
    offered = set(get_args(InputConfig.model_fields["datatype"].annotation))
    # BYTES is no tensor of numbers, and numpy has no bfloat16.
    assert offered == set(Datatype) - {Datatype.BYTES, Datatype.BF16}


def test_paths_stay_as_they_are_when_no_folder_is_given() -> None:
    # A manifest holds paths that are relative to its artifact, and is read where the sources may be gone.
    preprocessing: Preprocessing = TypeAdapter(Preprocessing).validate_json(
        '{"kind": "text", "tokenizer": "tokenizer.json"}'
    )
    assert preprocessing == TextPreprocessing(tokenizer=Path("tokenizer.json"))
    assert isinstance(preprocessing, TextPreprocessing)
    assert preprocessing.tokenizer == Path("tokenizer.json")
    assert OnnxSource(onnx=Path("nowhere/model.onnx")).onnx == Path("nowhere/model.onnx")


def test_model_config_survives_json() -> None:
    model = ModelConfig(
        source=HuggingFaceSource(huggingface=Path("/models/minilm"), task="feature-extraction", pooling="mean"),
        preprocessing=ImagePreprocessing(size=(28, 28), channels=1, mean=(0.5,), std=(0.2,)),
        tiers=("int8",),
    )
    assert ModelConfig.model_validate_json(model.model_dump_json()) == model
    assert model.tiers == ("dense", "int8")


@pytest.mark.parametrize("size", [True, 0, -1, 1.5, "large", [28], [28, True], None, "99999999"])
def test_image_size_is_refused_when_it_is_no_number_of_pixels(size: object) -> None:
    with pytest.raises(ValidationError, match="expected one number of pixels or"):
        ImagePreprocessing.model_validate({"size": size})


@pytest.mark.parametrize(("size", "expected"), [(28, 28), ("28", 28), ([28, 32], (28, 32)), ((28, "32"), (28, 32))])
def test_image_size_is_read_from_numbers_and_their_text(size: object, expected: object) -> None:
    assert ImagePreprocessing.model_validate({"size": size}).size == expected
