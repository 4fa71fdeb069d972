"""The networks of the serving benchmark, as serveprune imports them: every server gets the same ONNX file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import yaml
from onnx import TensorProto, helper, numpy_helper
from timed_tiers import open_artifact

from serveprune.artifacts.builder import BuildOutcome, BuildRequest
from serveprune.cli.demo import lay_out
from serveprune.compression.child import SubprocessBuilder
from serveprune.config.loading import load_config
from serveprune.config.model import DENSE, HuggingFaceSource
from serveprune.oip.tensor import Array

TOKENS = 128
_VOCABULARY = 30522
_MLP_WIDTHS = (64, 256, 256, 10)
_CONV_SHAPE = (3, 64, 64)
_CONV_STAGES = ((32, 1), (64, 2), (128, 1), (128, 2), (128, 1))
"""Channels and stride of each: about 620 rows a second on two cores with AVX-512."""
_DISTINCT = 16
"""Requests in rotation."""

Feeds = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Workload:
    """A graph and what clients send to it.

    Attributes:
        name: Of the model.
        graph: The ONNX file.
        config: A serveprune config that has this model and finds its artifact in the store.
        feeds: Distinct requests of one row each.
        answers: What ONNX Runtime computes for each, alone and in process: outputs by name.
    """

    name: str
    graph: Path
    config: Path
    feeds: tuple[Feeds, ...]
    answers: tuple[Feeds, ...]


def load_workload(name: str, *, folder: Path) -> Workload:
    """Import the network into a store within ``folder``, or find it there."""
    folder = folder.absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "serveprune.yaml"
    source = _SOURCES[name](folder)
    content = {"store": {"path": str(folder / "store")}, "models": {name: {"source": source}}}
    config_file.write_text(yaml.safe_dump(content, sort_keys=False))
    config = load_config(config_file)
    request = BuildRequest(model_name=name, model=config.model(name), tier=DENSE, profile=config.profile(DENSE))
    builder = SubprocessBuilder(config.store, config.builds, threads_of_serving=1)
    result = builder.build(request, on_progress=lambda progress: None, cancelled=Event())
    if result.outcome is BuildOutcome.FAILED or result.key is None:
        raise SystemExit(f"{name}: {'; '.join(result.reasons)}")
    graph = open_artifact(config.store.folder, result.key).graph
    random = np.random.default_rng(0)
    feeds = tuple(_FEEDS[name](random) for _ in range(_DISTINCT))
    return Workload(name, graph, config_file, feeds, tuple(_answers(graph, feeds)))


def _answers(graph: Path, feeds: tuple[Feeds, ...]) -> list[Feeds]:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(each)), strict=True)) for each in feeds]


class _Layers:
    """A network of layers that follow each other, with random weights that keep the scale of what passes."""

    def __init__(self, given: str) -> None:
        self._given = self._value = given
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(
        self,
        kind: str,
        shape: tuple[int, ...] | None = None,
        *,
        fan_in: int = 0,
        width: int = 0,
        **attributes: Any,
    ) -> None:
        """Add an operator; with weights of a shape, and ``width`` biases, if it has any."""
        number = len(self._nodes)
        inputs = [self._value]
        if shape is not None:
            scale = np.float32(np.sqrt(2 / fan_in))
            weight = self._random.standard_normal(shape).astype(np.float32) * scale
            inputs += [f"weight{number}", f"bias{number}"]
            self._constants += [
                numpy_helper.from_array(weight, inputs[1]),
                numpy_helper.from_array(np.zeros(width, np.float32), inputs[2]),
            ]
        self._value = f"value{number}"
        self._nodes.append(helper.make_node(kind, inputs, [self._value], **attributes))

    def save(self, file: Path, *, given: list[str | int], classes: int) -> dict[str, str]:
        """Write the network, and return it as the source of a model."""
        self._nodes[-1].output[0] = "scores"
        graph = helper.make_graph(
            self._nodes,
            file.stem,
            [helper.make_tensor_value_info(self._given, TensorProto.FLOAT, given)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", classes])],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, file)
        return {"onnx": str(file)}


def _mlp(folder: Path) -> dict[str, str]:
    """Write a perceptron, ``(N, 64) -> (N, 10)`` float32: so small that a server is all overhead."""
    layers = _Layers("features")
    for width, wider in pairwise(_MLP_WIDTHS[:-1]):
        layers.add("Gemm", (width, wider), fan_in=width, width=wider)
        layers.add("Relu")
    layers.add("Gemm", _MLP_WIDTHS[-2:], fan_in=_MLP_WIDTHS[-2], width=_MLP_WIDTHS[-1])
    return layers.save(folder / "mlp.onnx", given=["batch", _MLP_WIDTHS[0]], classes=_MLP_WIDTHS[-1])


def _conv(folder: Path) -> dict[str, str]:
    """Write a convolutional network of usual size, ``(N, 3, 64, 64) -> (N, 10)`` float32: 173 million MACs a row."""
    layers = _Layers("image")
    channels = _CONV_SHAPE[0]
    for wider, stride in _CONV_STAGES:
        layers.add(
            "Conv",
            (wider, channels, 3, 3),
            fan_in=9 * channels,
            width=wider,
            strides=[stride, stride],
            pads=[1, 1, 1, 1],
        )
        layers.add("Relu")
        channels = wider
    layers.add("GlobalAveragePool")
    layers.add("Flatten")
    layers.add("Gemm", (channels, 10), fan_in=channels, width=10)
    return layers.save(folder / "conv.onnx", given=["batch", *_CONV_SHAPE], classes=10)


def _fashion(folder: Path) -> dict[str, str]:
    return {"onnx": str(Path(__file__).parents[2] / "serveprune/demo/fashion.onnx")}


def _minilm(folder: Path) -> dict[str, object]:
    source = load_config(lay_out(folder / "demo")).model("minilm").source
    assert isinstance(source, HuggingFaceSource)
    return source.model_dump(mode="json")


def _sentence(random: np.random.Generator) -> Feeds:
    tokens = random.integers(1000, _VOCABULARY, (1, TOKENS), dtype=np.int64)
    return {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "token_type_ids": np.zeros_like(tokens),
    }


_SOURCES: Mapping[str, Callable[[Path], Mapping[str, object]]] = {
    "mlp": _mlp,
    "conv": _conv,
    "fashion": _fashion,
    "minilm": _minilm,
}
_FEEDS: Mapping[str, Callable[[np.random.Generator], Feeds]] = {
    "mlp": lambda random: {"features": random.standard_normal((1, _MLP_WIDTHS[0]), dtype=np.float32)},
    "conv": lambda random: {"image": random.standard_normal((1, *_CONV_SHAPE), dtype=np.float32)},
    "fashion": lambda random: {"image": random.standard_normal((1, 1, 28, 28), dtype=np.float32)},
    "minilm": _sentence,
}
MODELS = tuple(_SOURCES)
