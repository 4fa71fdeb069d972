import pytest
from pydantic import ValidationError

from serveprune.config.pruning import PruneOptions


@pytest.mark.parametrize("importance", ["taylor", "fisher"])
def test_loss_is_taken_when_importance_takes_gradients(importance: str) -> None:
    options = PruneOptions.model_validate({"target": {"ratio": 0.5}, "importance": importance, "loss": "labels"})
    assert (options.loss, options.learns_by_gradients) == ("labels", True)


def test_loss_is_refused_when_importance_takes_no_gradients() -> None:
    with pytest.raises(
        ValidationError, match="expected importance: taylor or fisher with loss: labels, got importance"
    ):
        PruneOptions.model_validate({"target": {"ratio": 0.5}, "loss": "labels"})
