"""What a lottery found, for the manifest and for people."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainedNetwork(_Record):
    """One training of the lottery."""

    accuracy: float = Field(description="Part of the judged samples whose highest score is at their label.")
    steps: int = Field(description="Batches learned from.")
    best_step: int = Field(description="Step of the schedule after which the weights were that were kept.")
    ended_by: str = Field(description="budget, patience or diverged; none where nothing was trained.")
    seconds: float


class LotteryRound(_Record):
    """One round: a mask, and what learned under it."""

    round: int
    sparsity: float = Field(description="Part of the weights that may be removed that is zero.")
    zeros: int
    ticket: TrainedNetwork
    reinitialized: TrainedNetwork | None = Field(None, description="The same mask with weights drawn anew.")


class LayerSparsity(_Record):
    """One layer of the ticket that was left."""

    name: str
    weights: int
    zeros: int


class LotteryReport(_Record):
    """The table of a lottery, and what it rests on."""

    rewind: Mapping[str, Any]
    start: Literal["random", "given", "trained"]
    scope: Literal["global", "layer"]
    seed: int
    learned_samples: int
    choosing_samples: int = Field(description="Choose the best weights of each training.")
    judged_samples: int = Field(description="Neither learned from nor chosen by; accuracies are theirs.")
    weights: int = Field(description="Those that may be removed.")
    all_weights: int = Field(description="All learned numbers of the graph.")
    dense: TrainedNetwork
    rounds: tuple[LotteryRound, ...]
    left: int = Field(description="The round whose ticket the graph is.")
    mask: str = Field(description="File beside the graph: weight -> bool array, true where the weight is left.")
    layers: tuple[LayerSparsity, ...]
    kept_as_given: tuple[str, ...] = Field((), description="Learned constants that were not drawn anew.")
    warnings: tuple[str, ...] = ()

    def standard_error(self, accuracy: float) -> float:
        """Return how far an accuracy is from the true one, typically, because only so many samples were judged."""
        return float((accuracy * (1 - accuracy) / self.judged_samples) ** 0.5)
