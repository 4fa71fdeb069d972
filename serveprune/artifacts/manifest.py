from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serveprune.config.model import Preprocessing
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import TensorSpec

MANIFEST_FILE = "manifest.json"
GRAPH_FILE = "model.onnx"
COMPRESSED_GRAPH_FILE = "model.onnx.gz"
"""Instead of the former, where the graph has many zeros; gunzip gives the ONNX file."""


class _Record(BaseModel):
    # An SQNR can be infinite, for which JSON has no number; as null it would not be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FileRecord(_Record):
    """One file of an artifact, as it was written."""

    sha256: str
    bytes: int


class TensorRecord(_Record):
    """A graph input or output."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, spec: TensorSpec) -> "TensorRecord":
        """Record a spec."""
        return cls(name=spec.name, datatype=spec.datatype, shape=spec.shape)

    @property
    def spec(self) -> TensorSpec:
        """The spec this records."""
        return TensorSpec(self.name, self.datatype, self.shape)


class GraphRecord(_Record):
    """What is known of a graph without opening it."""

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    parameters: int = Field(description="Elements of all weights.")
    bytes: int = Field(description="Size of the graph file as it is stored, and of its external data.")
    operators: Mapping[str, int] = Field(description="Operator -> number of nodes.")


class LatencyRecord(_Record):
    """Latency of a tier and of dense, measured in turns in one run on one machine."""

    dense_ms: float
    tier_ms: float
    ratio: float = Field(description="Median of the pairwise ratios tier / dense; below 1 is faster.")
    ratio_low: float = Field(description="10th percentile of the pairwise ratios.")
    ratio_high: float = Field(description="90th percentile of the pairwise ratios.")
    batch_size: int
    rounds: int
    threads: int

    @property
    def speedup(self) -> float:
        """How many times faster than dense."""
        return 1.0 / self.ratio

    @property
    def speedup_low(self) -> float:
        """The speedup that nine of ten pairs of timings reach."""
        return 1.0 / self.ratio_high

    @property
    def speedup_high(self) -> float:
        """The speedup that one of ten pairs of timings reaches."""
        return 1.0 / self.ratio_low


class Measurements(_Record):
    """What a tier costs in quality and gains in speed and size, against dense, on held-out inputs."""

    metric: str = Field(description="Name of the metric that `gate.min_quality` bounds.")
    quality: Mapping[str, float] = Field(description="Every metric by name; dense scores 1.0 on agreement metrics.")
    dense_quality: Mapping[str, float] = Field(
        default_factory=dict, description="The task's own metrics (accuracy, Spearman) of the dense graph."
    )
    batch_deviation: float = Field(description="See evaluation.batch_deviation.")
    samples: int
    evaluation_set: str = Field(description="What was measured on; says so when it was not a held-out file.")
    latency: LatencyRecord
    dense_bytes: int
    tier_bytes: int
    backend: str = Field("onnxruntime", description="What ran the tier; dense always ran on ONNX Runtime.")

    @property
    def headline_quality(self) -> float:
        """The value of `metric`."""
        return self.quality[self.metric]


class PassRecord(_Record):
    """What one pass did."""

    name: str
    revision: int
    options: Mapping[str, Any]
    report: Mapping[str, Any] = Field(description="The pass's own findings, for people.")
    seconds: float
    files: tuple[str, ...] = Field((), description="What it left beside the graph, among the artifact's files.")


class Manifest(_Record):
    """Lineage and measurements of one artifact; written last, so a folder without it is no artifact.

    A *dense* artifact is an imported graph; a *tier* artifact is what a profile made of one.
    """

    schema_version: Literal[1] = 1
    kind: Literal["dense", "tier"]
    key: str
    recipe: str = Field(description="SHA-256 over what was asked for; the key adds the environment.")
    environment: Mapping[str, str] = Field(description="Versions and CPU features that decided the bytes.")
    created: str = Field(description="UTC, ISO 8601.")
    model: str = Field(description="Name the model had when this was built; artifacts are shared across names.")
    source: Mapping[str, Any] = Field(description="Where the graph came from, as configured.")
    graph: GraphRecord
    files: Mapping[str, FileRecord]
    seconds: float = Field(description="How long the build took.")
    preprocessing: Preprocessing | None = Field(
        None, description="Dense only: what the source declares. Paths are relative to the artifact's folder."
    )
    parity_max_abs_error: float | None = Field(
        None, description="Dense only: against the source framework on the example inputs; null if it has none."
    )
    notes: tuple[str, ...] = Field((), description="What was repaired or left out, for people.")
    dense_key: str | None = Field(None, description="Tier only: the artifact it was made from.")
    passes: tuple[PassRecord, ...] = ()
    measurements: Measurements | None = Field(None, description="Tier only: on the backend that is measured first.")
    further_measurements: tuple[Measurements, ...] = Field((), description="Of the same graph on other backends.")
    unmeasured_backends: Mapping[str, str] = Field(
        default_factory=dict, description="Backend that was asked for and could not be measured -> why."
    )

    @property
    def all_measurements(self) -> tuple[Measurements, ...]:
        """What was measured, one for each backend."""
        first = () if self.measurements is None else (self.measurements,)
        return (*first, *self.further_measurements)

    def led_by(self, measurements: Measurements) -> "Manifest":
        """Return the same manifest with one of its measurements first: the one that holds where it is used."""
        others = tuple(other for other in self.all_measurements if other is not measurements)
        return self.model_copy(update={"measurements": measurements, "further_measurements": others})
