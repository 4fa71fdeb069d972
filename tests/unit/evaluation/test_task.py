from pathlib import Path
from typing import Any

import pytest

from serveprune.config.model import ModelConfig
from serveprune.evaluation.task import Task, infer_task, scored_outputs
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import TensorSpec


def output(name: str, *sizes: int, datatype: Datatype = Datatype.FP32) -> TensorSpec:
    return TensorSpec(name, datatype, (-1, *sizes))


ONNX = {"onnx": Path("model.onnx")}
FEATURES = {"huggingface": Path("folder"), "task": "feature-extraction"}
TEXTS = {"huggingface": Path("folder"), "task": "sequence-classification"}
IMAGES = {"huggingface": Path("folder"), "task": "image-classification"}


@pytest.mark.parametrize(
    ("source", "outputs", "labelled", "expected"),
    [
        (FEATURES, [output("anything", 384)], False, Task.EMBEDDING),
        (FEATURES, [output("tokens", -1, 384)], False, Task.GENERIC),
        (TEXTS, [output("logits", 2)], False, Task.CLASSIFICATION),
        (TEXTS, [output("logits", 1)], True, Task.GENERIC),
        (IMAGES, [output("logits", 1000)], False, Task.CLASSIFICATION),
        (ONNX, [output("logits", 10)], False, Task.CLASSIFICATION),
        (ONNX, [output("Probabilities", -1)], False, Task.CLASSIFICATION),
        (ONNX, [output("logits", 1)], True, Task.GENERIC),
        (ONNX, [output("logits", -1, 9)], False, Task.GENERIC),
        (ONNX, [output("sentence_embedding", 384)], True, Task.EMBEDDING),
        (ONNX, [output("output", 10)], True, Task.CLASSIFICATION),
        (ONNX, [output("output", 10)], False, Task.GENERIC),
        (ONNX, [output("a", 10), output("b", 10)], True, Task.GENERIC),
        (ONNX, [output("logits", 3, datatype=Datatype.INT64)], True, Task.GENERIC),
        (ONNX, [], True, Task.GENERIC),
    ],
)
def test_task_is_inferred(source: Any, outputs: list[TensorSpec], labelled: bool, expected: Task) -> None:
    assert infer_task(ModelConfig(source=source), outputs, labelled=labelled) is expected


def test_named_outputs_are_scored_alone_when_there_are_others() -> None:
    hidden, logits, tokens = output("hidden", 64), output("logits", 10), output("tokens", -1, 64)

    assert scored_outputs(Task.CLASSIFICATION, [hidden, logits, tokens]) == (logits,)
    assert scored_outputs(Task.EMBEDDING, [hidden, tokens]) == (hidden,)
    assert scored_outputs(Task.GENERIC, [hidden, logits, tokens]) == (hidden, logits, tokens)


def test_integers_are_scored_only_when_nothing_is_a_float() -> None:
    labels, scores = output("label", datatype=Datatype.INT64), output("scores", 3)
    names = output("name", datatype=Datatype.BYTES)

    assert scored_outputs(Task.GENERIC, [labels, scores, names]) == (scores,)
    assert scored_outputs(Task.GENERIC, [labels, names]) == (labels,)


@pytest.mark.parametrize("told", list(Task))
@pytest.mark.parametrize("source", [ONNX, FEATURES, TEXTS])
def test_task_is_what_the_config_says_when_it_says_so(source: Any, told: Task) -> None:
    model = ModelConfig.model_validate({"source": source, "task": str(told)})

    assert infer_task(model, [output("logits", 10)], labelled=True) is told
