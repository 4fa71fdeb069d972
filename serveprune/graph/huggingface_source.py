"""Hugging Face folders: local files only, weights from safetensors only, no code from the folder."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from serveprune.config.model import HuggingFaceSource, ModelConfig
from serveprune.errors import InvalidArgument
from serveprune.graph.export import export_graph, first_reason, quiet_frameworks
from serveprune.graph.huggingface_folder import (
    image_channels,
    image_size,
    model_settings,
    read_settings,
    token_inputs,
)
from serveprune.graph.parity import Reference
from serveprune.graph.pooling import TokenPooling
from serveprune.graph.probe import AXIS_SIZES, BATCHES
from serveprune.graph.source_graph import SourceGraph
from serveprune.oip.tensor import Array

_LOADERS = {
    "feature-extraction": transformers.AutoModel,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "image-classification": transformers.AutoModelForImageClassification,
}
_EXPORT_BATCH = 2
_SHARDS = "model.safetensors.index.json"


class _TextModel(nn.Module):
    """The model with its head: text inputs by name in, one tensor out."""

    def __init__(self, model: nn.Module, head: TokenPooling | None) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute logits ``(N, classes)``, or what the head makes of the token vectors."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        outputs = self.model(**inputs)
        if self.head is None:
            logits: torch.Tensor = outputs.logits
            return logits
        pooled: torch.Tensor = self.head(outputs.last_hidden_state, attention_mask)
        return pooled


class _ImageModel(nn.Module):
    """An image classifier as a function of its pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute logits ``(N, classes)`` from pixels ``(N, C, H, W)``."""
        logits: torch.Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def read_huggingface_source(
    model: ModelConfig, source: HuggingFaceSource, *, progress: Callable[[str, float], None]
) -> SourceGraph:
    """Load a folder with transformers and export it.

    Raises:
        InvalidArgument: The folder lacks something, or holds a model of another kind than the task.
        BuildFailed: The model cannot be expressed as ONNX.
    """
    folder = Path(source.huggingface)
    label = folder.name
    loaded = _load(folder, source)
    if source.task == "image-classification":
        program: nn.Module = _ImageModel(loaded).eval()
        names: tuple[str, ...] = ("pixel_values",)
        feeds = _image_feeds(model, label=label)
        output, axes = "logits", {0: "batch"}
    else:
        head = TokenPooling(source.pooling, normalize=source.normalize) if source.task == "feature-extraction" else None
        program = _TextModel(loaded, head).eval()
        names = token_inputs(folder)
        _check_forward(loaded, names, label=label)
        feeds = _text_feeds(names, vocabulary=_vocabulary(folder))
        output, axes = _text_output(source), {0: "batch", 1: "sequence"}
    progress("computing reference outputs", 0.15)
    references = tuple(_reference(program, feed, label=label) for feed in feeds[1:])
    progress("exporting to ONNX", 0.2)
    graph, notes = export_graph(
        program,
        label=label,
        kwargs=_tensors(feeds[0]),
        input_names=names,
        output_names=[output],
        dynamic_shapes=dict.fromkeys(names, axes),
    )
    return SourceGraph(label=label, model=graph, references=references, notes=notes)


def _check_shards(folder: Path) -> None:
    """Refuse weights that lie elsewhere: a folder may come from anywhere, and names in its index too."""
    shards = read_settings(folder, _SHARDS).get("weight_map", {})
    for name in shards.values() if isinstance(shards, dict) else (shards,):
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidArgument(f"{folder.name}/{_SHARDS}: expected names of files in the folder, got {name!r}")


def _load(folder: Path, source: HuggingFaceSource) -> nn.Module:
    model_settings(folder)
    if not any((folder / name).is_file() for name in ("model.safetensors", _SHARDS)):
        others = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.h5", "*.msgpack") for path in folder.glob(pattern)
        )
        raise InvalidArgument(
            f"{folder.name}: expected weights in model.safetensors, found {', '.join(others) or 'none'}; pickled "
            "weights are never loaded: save the model again with save_pretrained, which writes safetensors"
        )
    _check_shards(folder)
    transformers.utils.logging.disable_progress_bar()
    try:
        with quiet_frameworks():
            model, report = _LOADERS[source.task].from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                # The fused attention exports to more nodes, and ONNX Runtime then needs 5 % longer.
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises a dozen unrelated types, also from the model's own code
        raise InvalidArgument(
            f"{folder.name}: transformers cannot load this folder for {source.task}: {first_reason(error)}"
        ) from error
    _check_weights(report, source, label=folder.name)
    module: nn.Module = model.float().eval()
    return module


def _check_weights(report: Mapping[str, Any], source: HuggingFaceSource, *, label: str) -> None:
    missing = sorted(report.get("missing_keys", ()))
    if source.task == "feature-extraction":
        # Token vectors do not pass through the pooler, and many encoders are saved without one.
        missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise InvalidArgument(
            f"{label}: expected weights for every layer that {source.task} needs, got none for {', '.join(missing[:5])}"
            f"{' and more' if len(missing) > 5 else ''}; the folder holds a model for another task"
        )


def _check_forward(model: nn.Module, names: tuple[str, ...], *, label: str) -> None:
    accepted = inspect.signature(model.forward).parameters
    refused = [name for name in names if name not in accepted]
    if refused:
        raise InvalidArgument(
            f"{label}: its tokenizer gives {', '.join(names)}, but the model does not take {', '.join(refused)}; "
            "list what it takes as model_input_names in tokenizer_config.json"
        )


def _vocabulary(folder: Path) -> int:
    settings = model_settings(folder)
    size = settings.get("vocab_size")
    return size if isinstance(size, int) and size > 1 else 2


def _text_output(source: HuggingFaceSource) -> str:
    if source.task == "sequence-classification":
        return "logits"
    return "last_hidden_state" if source.pooling == "none" else "embedding"


def _text_feeds(names: tuple[str, ...], *, vocabulary: int) -> list[dict[str, Array]]:
    """Return feeds for the export, then for the references; the last rows of a batch are padded."""
    short, long = AXIS_SIZES[0]
    sizes = ((_EXPORT_BATCH, long - 1), (BATCHES[0], short), (BATCHES[1], long))
    generator = np.random.default_rng(0)
    feeds = []
    for batch, length in sizes:
        mask = np.ones((batch, length), np.int64)
        for row in range(1, batch):
            mask[row, length - row :] = 0
        values = {
            "input_ids": generator.integers(0, vocabulary, (batch, length)).astype(np.int64),
            "token_type_ids": np.zeros((batch, length), np.int64),
            "attention_mask": mask,
        }
        feeds.append({name: values[name] for name in names})
    return feeds


def _image_feeds(model: ModelConfig, *, label: str) -> list[dict[str, Array]]:
    size = image_size(model)
    if size is None:
        raise InvalidArgument(
            f"{label}: expected the image size in preprocessor_config.json, in config.json (image_size), or as "
            "preprocessing of kind image in the configuration; found none"
        )
    generator = np.random.default_rng(0)
    shape = (image_channels(model), *size)
    return [
        {"pixel_values": generator.standard_normal((batch, *shape)).astype(np.float32)}
        for batch in (_EXPORT_BATCH, *BATCHES)
    ]


def _tensors(feed: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def _reference(program: nn.Module, feed: Mapping[str, Array], *, label: str) -> Reference:
    try:
        with quiet_frameworks(), torch.no_grad():
            output = program(**_tensors(feed))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise InvalidArgument(f"{label}: the model does not take {shapes}: {first_reason(error)}") from error
    return Reference(feed, (output.numpy(),))
