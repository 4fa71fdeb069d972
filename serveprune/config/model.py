from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from serveprune.config.base import ConfigModel

DENSE = "dense"
"""The tier with no pass applied; every model has it."""


class OnnxSource(ConfigModel):
    """An ONNX file, with its external data (if any) in the same folder."""

    onnx: Path


class HuggingFaceSource(ConfigModel):
    """A folder as `save_pretrained` leaves it: config, safetensors weights, tokenizer or image processor."""

    huggingface: Path
    task: Literal["feature-extraction", "sequence-classification", "image-classification"]
    pooling: Literal["mean", "cls", "max", "none"] = Field(
        "none", description="How token vectors become one vector; `feature-extraction` only."
    )
    normalize: bool = Field(False, description="Scale the pooled vector to length 1.")

    @model_validator(mode="after")
    def _pooling_fits_task(self) -> "HuggingFaceSource":
        if self.task != "feature-extraction" and (self.pooling != "none" or self.normalize):
            raise ValueError(f"pooling and normalize belong to task feature-extraction, not to {self.task}")
        return self


class InputConfig(ConfigModel):
    """One input of a torch model, which cannot say itself what it takes."""

    name: str
    datatype: str = Field("FP32", description="Open Inference Protocol datatype.")
    shape: tuple[int | str, ...] = Field(
        description="Sizes; a name (such as batch or sequence) stands for a dynamic axis. The first is batch."
    )


class TorchSource(ConfigModel):
    """A function that returns a `torch.nn.Module`, run only because this file names it.

    Weights are loaded from safetensors, or from a state dict with `weights_only=True`.
    """

    torch: str = Field(pattern=r"^[\w.]+:\w+$", description="`package.module:function`, called without arguments.")
    weights: Path | None = None
    inputs: tuple[InputConfig, ...] = Field(min_length=1)
    outputs: tuple[str, ...] = Field((), description="Names of the outputs, in order. Default: output, output_1, ...")


class ExportedProgramSource(ConfigModel):
    """A program saved with `torch.export.save`."""

    pt2: Path


def _source_kind(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else type(value).model_fields
    return next((kind for kind in ("onnx", "huggingface", "torch", "pt2") if kind in keys), None)


Source = Annotated[
    Annotated[OnnxSource, Tag("onnx")]
    | Annotated[HuggingFaceSource, Tag("huggingface")]
    | Annotated[TorchSource, Tag("torch")]
    | Annotated[ExportedProgramSource, Tag("pt2")],
    Discriminator(
        _source_kind,
        custom_error_type="unknown_source",
        custom_error_message="expected a source with one of the keys onnx, huggingface, torch, pt2",
    ),
]


class DatasetConfig(ConfigModel):
    """A calibration or evaluation set: `.npz` with one array per graph input, or `.jsonl`."""

    file: Path
    samples: int | None = Field(None, ge=1, description="Use only the first so many samples. Default: all.")


class TextPreprocessing(ConfigModel):
    """Text (BYTES, UTF-8) to token ids with a `tokenizer.json`."""

    kind: Literal["text"] = "text"
    tokenizer: Path
    max_length: int | None = Field(None, ge=1, description="Longer texts are cut to so many tokens.")
    input: str = Field("text", description="Name of the BYTES input clients send.")


class ImagePreprocessing(ConfigModel):
    """PNG or JPEG (BYTES) to a float32 `(N, C, H, W)` tensor: resized, divided by 255, normalised."""

    kind: Literal["image"] = "image"
    size: int | tuple[int, int] = Field(description="Height and width in pixels, or one number for both.")
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    max_pixels: int = Field(16_777_216, ge=1, description="Larger images are refused before they are decoded.")
    input: str = Field("image_bytes", description="Name of the BYTES input clients send.")
    target: str | None = Field(None, description="Graph input that takes the tensor. Default: the only one.")

    @model_validator(mode="after")
    def _statistics_fit_channels(self) -> "ImagePreprocessing":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name}: expected 1 or {self.channels} values, got {len(values)}")
        if any(value <= 0 for value in self.std):
            raise ValueError("std: expected values above 0")
        return self


Preprocessing = Annotated[TextPreprocessing | ImagePreprocessing, Field(discriminator="kind")]


class ModelConfig(ConfigModel):
    """What is registered under one name: where it comes from, what measures it, which tiers it has."""

    source: Source
    version: str = Field("1", pattern=r"^[\w.\-]+$")
    preprocessing: Preprocessing | None = Field(
        None, description="Default: what the source's folder declares (tokenizer.json, preprocessor_config.json)."
    )
    calibration: DatasetConfig | None = Field(None, description="Unlabelled inputs that passes learn from.")
    evaluation: DatasetConfig | None = Field(
        None, description="Held-out inputs, with labels or scores if there are any, that tiers are judged on."
    )
    tiers: tuple[str, ...] = Field((DENSE,), description="Each is `dense` or the name of a profile.")
    max_batch_size: int = Field(32, ge=1, description="Rows computed at once.")
