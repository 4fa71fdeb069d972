import pytest

from serveprune.config.model import ModelConfig
from serveprune.handlers.torchserve.archiving.archive import Frontend


@pytest.mark.parametrize(
    ("frontend", "delay_ms", "expected"),
    [
        (Frontend(), 0.0, (1, 32, 1)),
        (Frontend(), 4.4, (1, 32, 4)),
        (Frontend(workers=2, batch_size=1, max_batch_delay_ms=0), 4.4, (2, 1, 0)),
    ],
)
def test_frontend_takes_from_the_model_what_is_not_said(
    frontend: Frontend, delay_ms: float, expected: tuple[int, int, int]
) -> None:
    model = ModelConfig.model_validate({"source": {"pt2": "m.pt2"}, "max_queue_delay_ms": delay_ms})
    keys = frontend.keys(model)
    assert (keys["minWorkers"], keys["batchSize"], keys["maxBatchDelay"]) == expected
    assert keys["maxWorkers"] == keys["minWorkers"]
