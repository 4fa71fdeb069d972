from collections.abc import Sequence
from enum import StrEnum

from serveprune.config.model import ArtifactSource, HuggingFaceSource, ModelConfig
from serveprune.oip.tensor import TensorSpec

_CLASS_SCORE_NAMES = frozenset({"logits", "probabilities", "probs"})
_EMBEDDING_NAMES = frozenset({"embedding", "embeddings", "sentence_embedding", "pooler_output"})
_ROWS = 2
"""Rank of an output with one vector per row of the batch."""


class Task(StrEnum):
    """What a model's answers mean, which decides how two of them are compared."""

    CLASSIFICATION = "classification"
    EMBEDDING = "embedding"
    GENERIC = "generic"

    @property
    def headline_metric(self) -> str:
        """The metric that `gate.min_quality` bounds."""
        return "top1_agreement" if self is Task.CLASSIFICATION else "cosine"


def infer_task(model: ModelConfig, outputs: Sequence[TensorSpec], *, labelled: bool = False) -> Task:
    """Decide what a model's answers mean, from its source and the outputs of its dense graph.

    The first rule that fits decides. From rule 2 on, only outputs ``(batch, width)`` of floats count, for a
    classifier only those that can be wider than 1: a single score is a regression, whose arg max says nothing.

    1. The model's ``task``, where it is set.
    2. A Hugging Face source says its task: classification, or embedding for feature extraction.
    3. An output named logits, probabilities or probs: classification.
    4. An output named embedding, embeddings, sentence_embedding or pooler_output: embedding.
    5. Exactly one output, and the evaluation set has labels (``labelled``): classification.
    6. Otherwise generic.
    """
    if model.task is not None:
        return Task(model.task)
    rows, classes = _row_outputs(outputs), _class_outputs(outputs)
    declared = model.source.task if isinstance(model.source, HuggingFaceSource | ArtifactSource) else None
    if declared is not None:
        if declared == "feature-extraction":
            return Task.EMBEDDING if rows else Task.GENERIC
        return Task.CLASSIFICATION if classes else Task.GENERIC
    if any(spec.name.lower() in _CLASS_SCORE_NAMES for spec in classes):
        return Task.CLASSIFICATION
    if any(spec.name.lower() in _EMBEDDING_NAMES for spec in rows):
        return Task.EMBEDDING
    if labelled and len(outputs) == 1 and classes:
        return Task.CLASSIFICATION
    return Task.GENERIC


def scored_outputs(task: Task, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the outputs that the task's metrics look at; the first one is what labels and scores belong to.

    Outputs with a telling name (see `infer_task`) are preferred over others of the same shape. A generic model
    is scored on all its float outputs, or on all numeric ones where none is a float.
    """
    if task is Task.CLASSIFICATION:
        return _preferred(_class_outputs(outputs), names=_CLASS_SCORE_NAMES)
    if task is Task.EMBEDDING:
        return _preferred(_row_outputs(outputs), names=_EMBEDDING_NAMES)
    return numeric_outputs(outputs)


def numeric_outputs(outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the float outputs, or all outputs of numbers where none is a float."""
    floats = tuple(spec for spec in outputs if _is_float(spec))
    return floats or tuple(spec for spec in outputs if spec.datatype.dtype.kind in "biu")


def is_row_of_scores(spec: TensorSpec) -> bool:
    """Tell whether an output may hold a score for each class: floats ``(batch, width)``, and not width 1."""
    return _is_float(spec) and len(spec.shape) == _ROWS and spec.shape[1] != 1


def _row_outputs(outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in outputs if _is_float(spec) and len(spec.shape) == _ROWS)


def _class_outputs(outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in outputs if is_row_of_scores(spec))


def _preferred(outputs: tuple[TensorSpec, ...], *, names: frozenset[str]) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in outputs if spec.name.lower() in names) or outputs


def _is_float(spec: TensorSpec) -> bool:
    return spec.datatype.dtype.kind == "f"
