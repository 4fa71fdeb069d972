"""What a Hugging Face folder says about itself in its JSON files, read without transformers or torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serveprune.config.model import HuggingFaceSource, ImagePreprocessing, ModelConfig
from serveprune.errors import InvalidArgument

TOKEN_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""Every input a text can fill, in the order of graph inputs."""

# Architectures whose tokenizer makes token_type_ids by default and whose model takes them.
_WITH_TOKEN_TYPES = frozenset(
    {
        "align",
        "bert",
        "bros",
        "chinese_clip",
        "convbert",
        "dpr",
        "electra",
        "ernie",
        "layoutlm",
        "lxmert",
        "markuplm",
        "megatron-bert",
        "mobilebert",
        "nezha",
        "nomic_bert",
        "qdqbert",
        "realm",
        "retribert",
        "squeezebert",
        "visual_bert",
        "canine",
        "deberta",
        "deberta-v2",
    }
)
# Architectures that refuse token_type_ids, although they often come with BERT's tokenizer.
_WITHOUT_TOKEN_TYPES = frozenset({"distilbert", "mpnet", "modernbert", "bart", "mbart", "t5", "mt5", "xlm"})
# Architectures whose first position number is the padding token's id + 1.
_OFFSET_POSITIONS = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "roberta-prelayernorm",
        "data2vec-text",
        "mpnet",
        "longformer",
        "ibert",
        "xmod",
    }
)
# transformers writes 1e30 for "no limit".
_NO_LIMIT = 10**6


def read_settings(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the content of one of the folder's JSON files; empty if there is no such file.

    Raises:
        InvalidArgument: The file is no JSON object.
    """
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{folder.name}/{name}: expected a JSON object: {error}") from error
    if not isinstance(content, dict):
        raise InvalidArgument(f"{folder.name}/{name}: expected a JSON object, got {type(content).__name__}")
    return content


def model_settings(folder: Path) -> Mapping[str, Any]:
    """Return `config.json`.

    Raises:
        InvalidArgument: There is none, or it does not name the architecture.
    """
    settings = read_settings(folder, "config.json")
    if not isinstance(settings.get("model_type"), str):
        raise InvalidArgument(
            f"{folder}: expected a Hugging Face folder with a config.json that has a model_type, as save_pretrained "
            "leaves it"
        )
    return settings


def token_inputs(folder: Path) -> tuple[str, ...]:
    """Return the inputs that the folder's tokenizer fills and its model takes, in the order of `TOKEN_INPUTS`.

    Raises:
        InvalidArgument: The tokenizer fills inputs that plain text cannot (boxes, pixels), or no mask.
    """
    model_type = model_settings(folder)["model_type"]
    declared = read_settings(folder, "tokenizer_config.json").get("model_input_names")
    if declared is None:
        names = set(TOKEN_INPUTS) if model_type in _WITH_TOKEN_TYPES else {"input_ids", "attention_mask"}
    else:
        names = set(declared)
    if model_type in _WITHOUT_TOKEN_TYPES:
        names.discard("token_type_ids")
    if not names <= set(TOKEN_INPUTS) or not names >= {"input_ids", "attention_mask"}:
        raise InvalidArgument(
            f"{folder.name}: expected a model of input_ids and attention_mask (token_type_ids if need be), got one of "
            f"{', '.join(sorted(names))}"
        )
    return tuple(name for name in TOKEN_INPUTS if name in names)


def token_limit(folder: Path) -> int | None:
    """Return how many tokens the model takes at most: the smallest of the limits the folder states."""
    config = model_settings(folder)
    limits = [
        read_settings(folder, "sentence_bert_config.json").get("max_seq_length"),
        read_settings(folder, "tokenizer_config.json").get("model_max_length"),
    ]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config["model_type"] in _OFFSET_POSITIONS:
        positions -= (config.get("pad_token_id") or 0) + 1
    stated = [int(value) for value in (*limits, positions) if isinstance(value, int | float) and 0 < value < _NO_LIMIT]
    return min(stated, default=None)


def image_size(model: ModelConfig) -> tuple[int, int] | None:
    """Return height and width of the images a model takes, from what the config or the folder declares."""
    if isinstance(model.preprocessing, ImagePreprocessing):
        size = model.preprocessing.size
        return (size, size) if isinstance(size, int) else size
    folder = _folder(model)
    settings = read_settings(folder, "preprocessor_config.json")
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    candidates = (crop, settings.get("size"), model_settings(folder).get("image_size"))
    return next((size for size in map(_height_and_width, candidates) if size is not None), None)


def image_channels(model: ModelConfig) -> int:
    """Return the number of channels of the images a model takes."""
    channels = model_settings(_folder(model)).get("num_channels", 3)
    return int(channels)


def _folder(model: ModelConfig) -> Path:
    assert isinstance(model.source, HuggingFaceSource)
    return model.source.huggingface


def _height_and_width(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    if isinstance(value, dict):
        if "height" in value and "width" in value:
            return int(value["height"]), int(value["width"])
        if "shortest_edge" in value:
            return int(value["shortest_edge"]), int(value["shortest_edge"])
    return None
