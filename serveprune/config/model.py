from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serveprune.config.base import ConfigModel
from serveprune.config.locations import DatasetFile, ExistingFile, HuggingFaceFolder
from serveprune.config.names import Name
from serveprune.config.numbers import BatchRows, DelayMilliseconds, Number, PositiveWholeNumber, WholeNumber
from serveprune.config.problem import description
from serveprune.config.versions import LATEST, VersionPolicy, served_versions, version_order

DENSE = "dense"
"""The tier with no pass applied; every model has it."""


class OnnxSource(ConfigModel):
    """An ONNX file, with its external data (if any) in the same folder."""

    onnx: ExistingFile = Field(description="The `.onnx` file.")


class HuggingFaceSource(ConfigModel):
    """A folder as `save_pretrained` leaves it: config, safetensors weights, tokenizer or image processor."""

    huggingface: HuggingFaceFolder = Field(description="The folder; it holds a config.json.")
    task: Literal["feature-extraction", "sequence-classification", "image-classification"] = Field(
        description="What the model is for; decides the graph's outputs and how tiers are judged."
    )
    pooling: Literal["mean", "cls", "max", "none"] = Field(
        default="none", description="How token vectors become one vector; `feature-extraction` only."
    )
    normalize: bool = Field(
        default=False, description="Scale the pooled vector to length 1; `feature-extraction` only."
    )

    @field_validator("pooling", "normalize")
    @classmethod
    def _pooling_fits_task(cls, value: str | bool, info: ValidationInfo) -> str | bool:
        task = info.data.get("task", "feature-extraction")
        if task != "feature-extraction" and value not in ("none", False):
            raise ValueError(f"expected this with task feature-extraction only, got it with task {task}")
        return value


def _axis_size(value: Any) -> Any:
    fits = value.isidentifier() if isinstance(value, str) else isinstance(value, int) and 1 <= value < 2**31
    if isinstance(value, bool) or not fits:
        raise ValueError(f"expected a size above 0 or the name of a dynamic axis, got {description(value)}")
    return value


AxisSize = Annotated[int | str, BeforeValidator(_axis_size)]


class InputConfig(ConfigModel):
    """One input of a torch model, which cannot say itself what it takes."""

    name: str = Field(min_length=1, description="Name of the graph input, in the order of `forward`'s arguments.")
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
    ] = Field(default="FP32", description="Open Inference Protocol datatype.")
    shape: tuple[AxisSize, ...] = Field(
        min_length=1,
        description="Sizes; a name (such as batch or sequence) stands for a dynamic axis. The first is batch.",
    )


class TorchSource(ConfigModel):
    """A function that returns a `torch.nn.Module`, run only because this file names it.

    Weights are loaded from safetensors, or from a state dict with `weights_only=True`.
    """

    torch: str = Field(pattern=r"^[\w.]+:\w+$", description="`package.module:function`, called without arguments.")
    weights: ExistingFile | None = Field(
        default=None,
        description="A safetensors file or a saved state dict. Trained weights belong here. Default: the weights the "
        "function set; what it draws at random is drawn with seed 0, and a file that it reads by itself is not seen "
        "when it changes.",
    )
    inputs: tuple[InputConfig, ...] = Field(min_length=1, description="What `forward` takes.")
    outputs: tuple[str, ...] = Field(
        default=(), description="Names of the outputs, in order. Default: output, output_1, ..."
    )

    @field_validator("inputs", "outputs")
    @classmethod
    def _names_differ(cls, values: tuple[InputConfig | str, ...]) -> tuple[InputConfig | str, ...]:
        _expect_each_once([value if isinstance(value, str) else value.name for value in values])
        return values


class ExportedProgramSource(ConfigModel):
    """A program saved with `torch.export.save`."""

    pt2: ExistingFile = Field(description="The `.pt2` file.")


class ArtifactSource(ConfigModel):
    """A graph that was imported into the store before, by its key: without the files that it was imported from."""

    artifact: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="Key of the dense artifact (`serveprune cache ls --json`)."
    )
    task: Literal["feature-extraction", "sequence-classification", "image-classification"] | None = Field(
        default=None, description="Of the Hugging Face folder that it was imported from, if it was one."
    )


SOURCE_KINDS = ("onnx", "huggingface", "torch", "pt2", "artifact")
"""Keys of which a source has one."""

_KINDS = ", ".join(SOURCE_KINDS)
_SOURCE_RULE = f"Where the graph comes from: a mapping with one of the keys {_KINDS}."


def _source_kind(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    kinds = [kind for kind in SOURCE_KINDS if kind in keys]
    return kinds[0] if len(kinds) == 1 else None


Source = Annotated[
    Annotated[OnnxSource, Tag("onnx")]
    | Annotated[HuggingFaceSource, Tag("huggingface")]
    | Annotated[TorchSource, Tag("torch")]
    | Annotated[ExportedProgramSource, Tag("pt2")]
    | Annotated[ArtifactSource, Tag("artifact")],
    Discriminator(
        _source_kind,
        custom_error_type="unknown_source",
        custom_error_message=f"expected a mapping with exactly one of the keys {_KINDS}",
    ),
]


class DatasetConfig(ConfigModel):
    """A calibration or evaluation set: `.npz` with one array per graph input, or `.jsonl`."""

    file: DatasetFile = Field(description="The `.npz` or `.jsonl` file.")
    samples: PositiveWholeNumber | None = Field(
        default=None, description="Use only the first so many samples. Default: all."
    )


def _require_kind(schema: dict[str, Any]) -> None:
    # The default serves code that names the class; a file says which of the two it means.
    schema["required"] = ["kind", *schema.get("required", ())]


class TextPreprocessing(ConfigModel):
    """Text (BYTES, UTF-8) to token ids with a `tokenizer.json`."""

    model_config = ConfigDict(json_schema_extra=_require_kind)

    kind: Literal["text"] = Field(default="text", description="`text`: clients may send text.")
    tokenizer: ExistingFile = Field(description="A `tokenizer.json` as the tokenizers library writes it.")
    max_length: PositiveWholeNumber | None = Field(
        default=None,
        description="Longer texts are cut to so many tokens. Default: what the tokenizer's file says.",
    )
    input: str = Field(default="text", min_length=1, description="Name of the BYTES input clients send.")


def _image_size(value: Any) -> Any:
    sides = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    # Text is let through for the sake of `${NAME}`, as everywhere else.
    numbers = [int(side) if isinstance(side, str) and side.isdecimal() and len(side) < 6 else side for side in sides]
    if not all(type(side) is int and 1 <= side <= 16_384 for side in numbers):
        raise ValueError(
            f"expected one number of pixels or [height, width], each from 1 to 16384, got {description(value)}"
        )
    return tuple(numbers) if len(numbers) == 2 else numbers[0]


class ImagePreprocessing(ConfigModel):
    """PNG or JPEG (BYTES) to a float32 `(N, C, H, W)` tensor: resized, divided by 255, normalised."""

    model_config = ConfigDict(json_schema_extra=_require_kind)

    kind: Literal["image"] = Field(default="image", description="`image`: clients may send PNG or JPEG files.")
    size: Annotated[int | tuple[int, int], BeforeValidator(_image_size)] = Field(
        description="Height and width in pixels, or one number for both."
    )
    channels: Literal[1, 3] = Field(default=3, description="1: greyscale, 3: RGB.")
    mean: tuple[Number, ...] = Field(
        default=(0.0,), description="Subtracted after the division by 255; one value, or one per channel."
    )
    std: tuple[Number, ...] = Field(default=(1.0,), description="Then divided by; one value, or one per channel.")
    max_pixels: WholeNumber = Field(
        default=16_777_216, ge=1, le=89_478_485, description="Larger images are refused before they are decoded."
    )
    input: str = Field(default="image_bytes", min_length=1, description="Name of the BYTES input clients send.")
    target: str | None = Field(default=None, description="Graph input that takes the tensor. Default: the only one.")

    @field_validator("mean", "std")
    @classmethod
    def _statistics_fit_channels(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = info.data.get("channels", len(values))
        if not values or len(values) not in (1, channels):
            raise ValueError(f"expected 1 or {channels or 3} values, got {len(values)}")
        if info.field_name == "std" and min(values) <= 0:
            raise ValueError(f"expected values above 0, got {min(values)}")
        return values


Preprocessing = Annotated[TextPreprocessing | ImagePreprocessing, Field(discriminator="kind")]


class _Described(ConfigModel):
    """What can be said of one version of a model, or of all of them."""

    source: Source | None = Field(
        default=None,
        description=f"{_SOURCE_RULE} Needed, unless there are `versions`.",
    )
    task: Literal["classification", "embedding", "generic"] | None = Field(
        default=None,
        description="What the answers mean, which decides how tiers are judged: by how often the highest score is at "
        "the same class, by the angle between vectors, or by how far the answers vary together. Default: what the "
        "source, the names of the outputs and the labels tell.",
    )
    version: Name = Field(default="1", description="What clients see as the model's version; raise it with the model.")
    preprocessing: Preprocessing | None = Field(
        default=None,
        description="Default: what the source's folder declares (tokenizer.json, preprocessor_config.json).",
    )
    calibration: DatasetConfig | None = Field(
        default=None, description="Inputs that passes learn from; labels are used by those that ask for them."
    )
    evaluation: DatasetConfig | None = Field(
        default=None, description="Held-out inputs, with labels or scores if there are any, that tiers are judged on."
    )
    tiers: tuple[str, ...] = Field(
        default=(DENSE,),
        min_length=1,
        description="Each is `dense`, which is always there and always first, or the name of a profile; from best to "
        "smallest: a tier that is not ready is stood in for by the nearest one listed before it.",
    )
    backend: Literal["onnxruntime", "openvino", "auto"] = Field(
        default="onnxruntime",
        description="What runs the graphs. `auto`: each tier is measured with both, and served by the faster one that "
        "passes its gate; dense stays with ONNX Runtime. `openvino` needs the extra of that name, and runs dense too.",
    )
    max_batch_size: WholeNumber = Field(
        default=32,
        ge=1,
        le=65_536,
        description="Rows computed at once, at the most. How many pay is measured when a tier is loaded; batches are "
        "never larger than that.",
    )
    max_batch_elements: PositiveWholeNumber | None = Field(
        default=None,
        description="Rows times the length of the longest, computed at once, at the most: tokens, padding included, "
        "for texts; elements of the largest input for other models. Default: no bound but max_batch_size.",
    )
    max_queue_delay_ms: Number = Field(
        default=0.0,
        ge=0,
        le=60_000,
        description="A request may wait so long for others to fill its batch, even if an executor is free. Default: "
        "a free executor takes at once what waits.",
    )

    @field_validator("tiers")
    @classmethod
    def _dense_is_first(cls, tiers: tuple[str, ...]) -> tuple[str, ...]:
        _expect_each_once(tiers)
        return (DENSE, *(tier for tier in tiers if tier != DENSE))


class ModelConfig(_Described):
    """One version of a model: where it comes from, what measures it, which tiers it has."""

    source: Source = Field(description=_SOURCE_RULE)

    @property
    def of_all_tiers(self) -> "ModelConfig":
        """What all tiers depend on: everything but which ones there are."""
        return self.model_copy(update={"tiers": ()})


class VersionConfig(ConfigModel):
    """One of several versions of a model; what it leaves out is as the model says. All have the model's tiers."""

    source: Source = Field(description=_SOURCE_RULE)
    task: Literal["classification", "embedding", "generic"] | None = Field(
        default=None, description="Default: that of the model."
    )
    preprocessing: Preprocessing | None = Field(default=None, description="Default: that of the model.")
    calibration: DatasetConfig | None = Field(default=None, description="Default: that of the model.")
    evaluation: DatasetConfig | None = Field(default=None, description="Default: that of the model.")
    backend: Literal["onnxruntime", "openvino", "auto"] | None = Field(
        default=None, description="Default: that of the model."
    )
    max_batch_size: BatchRows | None = Field(default=None, description="Default: that of the model.")
    max_batch_elements: PositiveWholeNumber | None = Field(default=None, description="Default: that of the model.")
    max_queue_delay_ms: DelayMilliseconds | None = Field(default=None, description="Default: that of the model.")

    def said(self) -> dict[str, Any]:
        """Return what it does not leave to the model, by setting."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value is not None}


class ModelEntry(_Described):
    """What is registered under one name, in one version or several."""

    versions: dict[Name, VersionConfig] = Field(
        default_factory=dict,
        validate_default=True,
        description="Version (in quotes) -> what it is, instead of `source` and `version`. Digits within a version are "
        "compared as numbers, the rest as text: 10 is higher than 9.",
        json_schema_extra={"additionalProperties": False},
    )
    version_policy: VersionPolicy = Field(
        default=LATEST,
        description="Which of the `versions` are served: `latest`, the highest; `{latest: 2}`, so many of the highest; "
        "`all`; or a list. Requests that name no version get the highest of them that is ready.",
    )

    @field_validator("versions")
    @classmethod
    def _one_of_both(cls, versions: dict[str, VersionConfig], info: ValidationInfo) -> dict[str, VersionConfig]:
        # A source that is wrong is reported already, and not among the data.
        if "source" in info.data:
            if versions and info.data["source"] is not None:
                raise ValueError("expected source or versions, got both")
            if not versions and info.data["source"] is None:
                raise PydanticCustomError(
                    "no_source",
                    f"expected source (a mapping with one of the keys {_KINDS}) or versions, got neither",
                )
        return versions

    @property
    def by_version(self) -> dict[str, ModelConfig]:
        """All versions, the lowest first, each as if it were the only one; also those that are not served."""
        shared = {name: getattr(self, name) for name in _Described.model_fields}
        each = {version: shared | own.said() | {"version": version} for version, own in self.said_of_versions().items()}
        return {version: ModelConfig.model_validate(each[version]) for version in sorted(each, key=version_order)}

    @property
    def served(self) -> dict[str, ModelConfig]:
        """The versions that the policy has served, the lowest first."""
        every = self.by_version
        return {version: every[version] for version in served_versions(every, self.version_policy)}

    def said_of_versions(self) -> dict[str, VersionConfig]:
        """Return what is said of each version itself."""
        if self.source is not None:
            return {self.version: VersionConfig.model_construct(source=self.source)}
        return self.versions


def _expect_each_once(names: list[str] | tuple[str, ...]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"expected each name once, got {', '.join(repeated)} more than once")
