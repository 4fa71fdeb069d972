import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from serveprune.compression.learning.batches import ShuffledBatches
from serveprune.compression.learning.history import Ending
from serveprune.compression.learning.training import Training
from serveprune.config.learning import LearningBudget, TrainingOptions
from serveprune.errors import InvalidArgument
from serveprune.evaluation.dataset import Dataset

SAMPLES = 48


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Networks this small lose more by handing work from thread to thread than they gain.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dataset() -> Dataset:
    values = np.random.default_rng(0).normal(size=(SAMPLES, 4)).astype(np.float32)
    return Dataset(tuple({"x": row} for row in values))


def network() -> torch.nn.Sequential:
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
    )


def wanted(x: Tensor) -> Tensor:
    return (x[:, :1] * x[:, 1:2]).tanh() + x[:, 2:3]


def options(**changed: Any) -> TrainingOptions:
    budget = changed.pop("budget", {"steps": 40})
    return TrainingOptions(
        budget=LearningBudget(**budget), **{"batch_size": 8, "learning_rate": 0.02, "validations": 8, **changed}
    )


def training(
    module: torch.nn.Module,
    chosen: TrainingOptions,
    *,
    loss: Callable[[Tensor], Tensor] = lambda error: error.square().mean(),
    **more: Any,
) -> Training:
    samples = dataset()
    everything = torch.from_numpy(np.stack([sample["x"] for sample in samples.samples]))

    def validate() -> float:
        assert not module.training
        return -float((module(everything) - wanted(everything)).square().mean())

    return Training(
        module,
        chosen,
        batches=ShuffledBatches(samples, batch_size=chosen.batch_size, seed=chosen.seed),
        loss=lambda feeds, indices: loss(module(feeds["x"]) - wanted(feeds["x"])),
        **{"validate": validate, **more},
    )


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_learns_and_leaves_the_best_weights(optimizer: str) -> None:
    module = network()
    trained = training(module, options(optimizer=optimizer, budget={"epochs": 20}))
    history = trained.run()
    assert history.ending is Ending.BUDGET
    assert history.steps == 20 * SAMPLES // 8
    assert history.epochs == 20
    assert history.quality > history.quality_before / 3
    assert history.quality == max(row.quality for row in history.rows)
    with torch.no_grad():
        assert trained._validate() == pytest.approx(history.quality)
    assert json.loads(json.dumps(history.findings()))["history"][0]["loss"] is None


def test_weights_are_the_same_bit_for_bit_when_the_seed_is() -> None:
    modules = [network(), network(), network()]
    for module, seed in zip(modules, (1, 1, 2), strict=True):
        state = torch.get_rng_state()
        training(module, options(seed=seed)).run()
        assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights(modules[0]), weights(modules[1]))
    assert not equal(weights(modules[0]), weights(modules[2]))


@pytest.mark.parametrize("killed_at", [1, 13, 39])
def test_killed_training_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path, killed_at: int) -> None:
    undisturbed = network()
    history = training(undisturbed, options()).run()

    def kill(step: int) -> None:
        if step == killed_at:
            raise Killed

    path = tmp_path / "folder" / "state.checkpoint"
    with pytest.raises(Killed):
        training(network(), options(), checkpoint=path, after_step=kill).run()
    # Of the process that was killed only the file is left.
    assert path.exists() == (killed_at > 5)
    resumed, steps = network(), list[int]()
    again = training(resumed, options(), checkpoint=path, after_step=steps.append)
    second = again.run()
    assert equal(weights(undisturbed), weights(resumed))
    assert [(row.step, row.loss, row.quality) for row in second.rows] == [
        (row.step, row.loss, row.quality) for row in history.rows
    ]
    assert len(steps) == 40 - killed_at // 5 * 5
    again.forget()
    assert list(path.parent.iterdir()) == []


def test_training_begins_anew_when_the_checkpoint_cannot_be_read(tmp_path: Path) -> None:
    undisturbed, module = network(), network()
    training(undisturbed, options()).run()
    path = tmp_path / "state.checkpoint"
    path.write_bytes(b"nothing of the kind")
    training(module, options(), checkpoint=path).run()
    assert equal(weights(undisturbed), weights(module))


def test_masked_weights_are_zero_after_every_step() -> None:
    module = network()
    mask = (torch.arange(64).reshape(16, 4) % 3 != 0).float()
    seen: list[float] = []

    def look(step: int) -> None:
        first = module[0].weight
        assert isinstance(first, Tensor)
        seen.append(float(first.detach()[mask == 0].abs().sum()))

    history = training(module, options(), masks={"0.weight": mask}, after_step=look).run()
    assert seen == [0.0] * 40
    assert history.improved
    final = module.state_dict()["0.weight"]
    assert torch.equal(final == 0, mask == 0)


def test_training_stops_early_when_nothing_better_comes() -> None:
    qualities = iter([0.1, 0.5, 0.4, 0.4, 0.3, 0.9])
    module, kept = network(), dict[int, dict[str, Tensor]]()

    def remember(step: int) -> None:
        kept[step] = weights(module)

    chosen = options(patience=3)
    history = training(module, chosen, validate=lambda: next(qualities), after_step=remember).run()
    assert history.ending is Ending.PATIENCE
    assert (history.best_step, history.quality, history.steps) == (5, 0.5, 20)
    assert equal(weights(module), kept[5])


def test_training_keeps_the_beginning_when_nothing_was_better() -> None:
    module = network()
    before = weights(module)
    history = training(module, options(), validate=lambda: 1.0).run()
    assert not history.improved
    assert equal(weights(module), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_training_stops_and_keeps_the_best_when_the_loss_runs_away(bad: float) -> None:
    module, count = network(), 0

    def loss(error: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return error.square().mean() * (bad if count > 22 else 1.0)

    history = training(module, options(), loss=loss).run()
    assert history.ending is Ending.DIVERGED
    assert history.steps == 23
    assert 0 < history.best_step <= 20
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    assert json.loads(json.dumps(history.findings(), allow_nan=False))["history"][-1]["quality"] is None


def _ticking(seconds: float) -> Callable[[], float]:
    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += seconds

    found = ticks()
    return lambda: next(found)


def test_time_budget_is_refused_with_what_one_epoch_needs_when_it_is_too_short() -> None:
    # The clock is read at least twice a step, and there are 24 steps.
    with pytest.raises(InvalidArgument, match=r"at least [4-9]\d(\.\d)? seconds, which one epoch .* got 40"):
        training(network(), options(budget={"seconds": 40}, batch_size=2), clock=_ticking(1.0)).run()


def test_time_budget_ends_the_training_when_it_is_used_up() -> None:
    said: list[tuple[float, str]] = []
    history = training(
        network(),
        options(budget={"seconds": 200}),
        clock=_ticking(1.0),
        on_progress=lambda fraction, message: said.append((fraction, message)),
    ).run()
    assert history.ending is Ending.BUDGET
    assert 200 <= history.seconds < 210
    assert [fraction for fraction, _ in said] == sorted(fraction for fraction, _ in said)
    assert "loss" in said[-1][1]
    assert "quality" in said[-1][1]


def test_statistics_stay_as_they_were_when_frozen() -> None:
    module = network()
    before = weights(module)
    training(module, options(), frozen_statistics=True).run()
    after = weights(module)
    assert torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert not torch.equal(before["1.weight"], after["1.weight"])


def test_only_parameters_that_want_gradients_are_trained() -> None:
    module = network()
    before = weights(module)
    first = module[0].weight
    assert isinstance(first, Tensor)
    first.requires_grad_(False)
    training(module, options()).run()
    assert torch.equal(before["0.weight"], module.state_dict()["0.weight"])
    assert not torch.equal(before["4.weight"], module.state_dict()["4.weight"])


def test_first_step_is_a_place_in_the_schedule_and_in_the_order_of_samples() -> None:
    steps: list[int] = []
    history = training(network(), options(), first_step=30, after_step=steps.append).run()
    assert steps == list(range(31, 41))
    assert history.rows[0].step == 30
