"""The preprocessing a model is stored with: what its config says, or what its source folder declares."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serveprune.config.model import (
    HuggingFaceSource,
    ImagePreprocessing,
    ModelConfig,
    Preprocessing,
    TextPreprocessing,
)
from serveprune.errors import InvalidArgument
from serveprune.graph.huggingface_folder import image_channels, image_size, read_settings, token_limit

TOKENIZER_FILE = "tokenizer.json"


def store_preprocessing(model: ModelConfig, *, folder: Path) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """Copy the files of a model's preprocessing into the artifact's folder.

    Args:
        model: What is registered; a preprocessing given there wins over the source's own.
        folder: Where the tokenizer goes.

    Returns:
        The preprocessing with paths relative to ``folder`` (``None`` if there is none), and notes for people.

    Raises:
        InvalidArgument: The tokenizer file is missing.
    """
    preprocessing: Preprocessing | None = model.preprocessing
    notes: tuple[str, ...] = ()
    if preprocessing is None and isinstance(model.source, HuggingFaceSource):
        if model.source.task == "image-classification":
            preprocessing, notes = _declared_image_preprocessing(model)
        else:
            preprocessing, notes = _declared_text_preprocessing(model.source.huggingface)
    if isinstance(preprocessing, TextPreprocessing):
        preprocessing = _stored(preprocessing, model, folder=folder)
    return preprocessing, notes


def _stored(preprocessing: TextPreprocessing, model: ModelConfig, *, folder: Path) -> TextPreprocessing:
    try:
        shutil.copyfile(preprocessing.tokenizer, folder / TOKENIZER_FILE)
    except OSError as error:
        raise InvalidArgument(f"tokenizer {preprocessing.tokenizer}: cannot be read: {error.strerror}") from error
    changes: dict[str, Any] = {"tokenizer": Path(TOKENIZER_FILE)}
    if "max_length" not in preprocessing.model_fields_set and isinstance(model.source, HuggingFaceSource):
        changes["max_length"] = token_limit(model.source.huggingface)
    return preprocessing.model_copy(update=changes)


def _declared_text_preprocessing(folder: Path) -> tuple[TextPreprocessing | None, tuple[str, ...]]:
    tokenizer = folder / TOKENIZER_FILE
    if not tokenizer.is_file():
        return None, (
            f"{folder.name} has no {TOKENIZER_FILE} (saving a fast tokenizer writes it): only token ids are accepted",
        )
    return TextPreprocessing(tokenizer=tokenizer, max_length=token_limit(folder)), ()


def _declared_image_preprocessing(model: ModelConfig) -> tuple[ImagePreprocessing | None, tuple[str, ...]]:
    assert isinstance(model.source, HuggingFaceSource)
    settings = read_settings(model.source.huggingface, "preprocessor_config.json")
    size, channels = image_size(model), image_channels(model)
    if not settings or size is None or channels not in (1, 3):
        return None, (
            "only tensors are accepted: images need a preprocessor_config.json with a size, and 1 or 3 channels",
        )
    mean, std = _statistics(settings)
    preprocessing = ImagePreprocessing.model_validate(
        {"size": size, "channels": channels, "mean": mean, "std": std, "target": "pixel_values"}
    )
    return preprocessing, _resizing_notes(settings, size)


def _statistics(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of pixels in 0..1, whatever range the folder's own are for."""
    normalize = settings.get("do_normalize", True)
    mean = settings.get("image_mean") if normalize else None
    std = settings.get("image_std") if normalize else None
    factor = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    range_of_one = 255.0 * factor
    return tuple(_rescaled(mean, 0.0, range_of_one)), tuple(_rescaled(std, 1.0, range_of_one))


def _rescaled(values: Any, default: float, range_of_one: float) -> list[float]:
    values = [default] if values is None else values if isinstance(values, list) else [values]
    return [round(float(value) / range_of_one, 9) for value in values]


def _resizing_notes(settings: Mapping[str, Any], size: tuple[int, int]) -> tuple[str, ...]:
    by_edge = isinstance(settings.get("size"), dict) and "shortest_edge" in settings["size"]
    if not by_edge and not settings.get("do_center_crop"):
        return ()
    return (f"images are resized straight to {size[0]} x {size[1]}; the source keeps proportions and crops",)
