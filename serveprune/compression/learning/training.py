"""Weights that learn within a budget: what every pass that trains shares."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from serveprune.compression.learning.batches import Batch, ShuffledBatches
from serveprune.compression.learning.checkpoint import CheckpointFile
from serveprune.compression.learning.divergence import LossWatch
from serveprune.compression.learning.history import Ending, History, HistoryRow
from serveprune.compression.learning.optimizer import make_optimizer
from serveprune.compression.learning.schedule import rate_factor
from serveprune.config.learning import TrainingOptions
from serveprune.errors import InvalidArgument

Loss = Callable[[dict[str, Tensor], NDArray[Any]], Tensor]
"""Takes the feeds of a batch and which samples they are; returns a scalar with gradients."""

_TIMED_STEPS = 10
_REPORT_SECONDS = 0.25


def _unheard(fraction: float, message: str) -> None:
    pass


@dataclass(slots=True)
class _State:
    """Where a training is.

    Attributes:
        looked: How many of the looks at the held-out part were due.
        best: Copies of the best weights and buffers.
        losses: Sum since the last row, and how many.
    """

    step: int
    seconds: float = 0.0
    looked: int = 0
    rows: list[HistoryRow] = field(default_factory=list)
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    watch: LossWatch = field(default_factory=LossWatch)
    losses: tuple[float, int] = (0.0, 0)


class Training:
    """Trains the parameters of a module that want gradients, and leaves the best weights in it."""

    def __init__(
        self,
        module: torch.nn.Module,
        options: TrainingOptions,
        *,
        batches: ShuffledBatches,
        loss: Loss,
        validate: Callable[[], float],
        masks: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, torch.nn.Parameter] | None = None,
        frozen_statistics: bool = False,
        first_step: int = 0,
        checkpoint: Path | None = None,
        on_progress: Callable[[float, str], None] = _unheard,
        after_step: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is computed yet.

        Args:
            module: Trained in place.
            options: Budget, optimizer, schedule.
            batches: What is learned from.
            loss: Called with the module in training mode.
            validate: Returns the quality of the held-out part, higher is better; called with the module in evaluation
                mode and without gradients.
            masks: Weight -> 1 for each number that may change and 0 for each that is held at zero.
            weights: The parameters that masks name. Default: by their names in the module.
            frozen_statistics: Learn in evaluation mode: no statistics of the batch, no dropout.
            first_step: Where in the schedule and in the order of the samples to begin; for a budget in steps or epochs.
            checkpoint: File from which a training that was killed goes on, its name unique to all that this one depends
                on. It stays until `forget`.
            on_progress: Takes the part of the budget that is used up, and loss and quality in words.
            after_step: Takes the number of steps done, after each.
            clock: Tells seconds.
        """
        self._module = module
        self._options = options
        self._batches = batches
        self._loss = loss
        self._validate = validate
        self._frozen_statistics = frozen_statistics
        self._first_step = first_step
        self._checkpoint = CheckpointFile(checkpoint)
        self._on_progress = on_progress
        self._after_step = after_step
        self._clock = clock
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = make_optimizer(self._trained, options)
        named = dict(module.named_parameters()) if weights is None else weights
        self._masked = [(named[name], mask) for name, mask in (masks or {}).items()]
        budget, per_epoch = options.budget, batches.steps_per_epoch
        self._steps = budget.steps or (None if budget.epochs is None else max(1, round(budget.epochs * per_epoch)))

    def run(self) -> History:
        """Learn until the budget is used up, nothing better comes, or the loss runs away.

        The module has the best weights in the end: those of the beginning, if none were better. The same seed gives the
        same weights bit for bit, killed or not, unless the budget is in seconds. torch's own random state is put back.

        Raises:
            InvalidArgument: The time is too short to see every sample once; the message says how long that takes.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._options.seed)
            state, generator = self._beginning()
            if generator is not None:
                torch.set_rng_state(generator)
            ending = self._learn(state)
        self._module.load_state_dict(state.best)
        self._module.eval()
        epochs = (state.step - self._first_step) / self._batches.steps_per_epoch
        return History(tuple(state.rows), best_step=state.best_step, ending=ending, epochs=epochs)

    def forget(self) -> None:
        """Remove the checkpoint, once what was learned is kept elsewhere."""
        self._checkpoint.remove()

    def _learn(self, state: _State) -> Ending:
        started, timed, reported = self._clock() - state.seconds, 0, float("-inf")
        timed_from = state.seconds
        stream: Iterator[Batch] = self._batches.from_step(state.step)
        # However long the first look took: only a step tells what an epoch needs.
        while (progress := self._progress(state)) < 1.0 or not (timed or len(state.rows) > 1):
            if self._patience_is_over(state):
                return Ending.PATIENCE
            loss = self._take_step(next(stream), progress)
            state.step += 1
            timed += 1
            state.losses = (state.losses[0] + loss, state.losses[1] + 1)
            state.seconds = self._clock() - started
            diverges = state.watch.diverges(loss)
            if self._after_step is not None:
                self._after_step(state.step)
            if timed <= _TIMED_STEPS and state.step - self._first_step == timed:
                self._require_time(state, steps=timed, step_seconds=(state.seconds - timed_from) / max(1, timed - 1))
            if timed == 1:
                timed_from = state.seconds  # the first step pays for what later ones find ready
            if diverges:
                self._note(state)
                return Ending.DIVERGED
            if int(self._progress(state) * self._options.validations) > state.looked:
                self._look(state)
                state.seconds = self._clock() - started
                self._keep(state)
            if self._clock() - reported >= _REPORT_SECONDS:
                reported = self._clock()
                self._on_progress(min(1.0, self._progress(state)), _words(state))
        return Ending.BUDGET

    def _take_step(self, batch: Batch, progress: float) -> float:
        options = self._options
        factor = rate_factor(progress, schedule=options.schedule, warmup_ratio=options.warmup_ratio)
        for group in self._optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        self._module.train(not self._frozen_statistics)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch.feeds, batch.indices)
        torch.autograd.backward(loss)
        for weight, mask in self._masked:
            if weight.grad is not None:
                weight.grad.mul_(mask)
        if options.gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, options.gradient_norm, foreach=True)
        self._optimizer.step()
        self._hold_zeros()
        return float(loss.item())

    def _hold_zeros(self) -> None:
        with torch.no_grad():
            for weight, mask in self._masked:
                weight.mul_(mask)

    def _look(self, state: _State) -> None:
        """Measure the held-out part, and keep the weights if they are the best so far."""
        self._module.eval()
        with torch.no_grad():
            quality = float(self._validate())
        state.looked = int(self._progress(state) * self._options.validations)
        if not state.rows or quality > _best_quality(state):
            state.best_step = state.step
            state.best = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}
        self._note(state, quality)

    def _note(self, state: _State, quality: float = float("nan")) -> None:
        total, count = state.losses
        rate = float(self._optimizer.param_groups[0]["lr"]) if count else 0.0
        loss = total / count if count else None
        state.rows.append(HistoryRow(state.step, loss, quality, rate, state.seconds))
        state.losses = (0.0, 0)

    def _patience_is_over(self, state: _State) -> bool:
        patience = self._options.patience
        return patience is not None and sum(row.step > state.best_step for row in state.rows) >= patience

    def _progress(self, state: _State) -> float:
        """Return the part of the budget that is used up."""
        if self._steps is not None:
            return state.step / self._steps
        assert self._options.budget.seconds is not None
        return state.seconds / self._options.budget.seconds

    def _require_time(self, state: _State, *, steps: int, step_seconds: float) -> None:
        """Refuse a budget in which not every sample can be seen once, as soon as that is known."""
        allowed, per_epoch = self._options.budget.seconds, self._batches.steps_per_epoch
        if allowed is None or steps >= per_epoch or (steps < _TIMED_STEPS and self._progress(state) < 1.0):
            return
        needed = step_seconds * per_epoch
        if needed > allowed:
            raise InvalidArgument(
                f"expected a budget of at least {needed:.3g} seconds, which one epoch (every sample learned from once) "
                f"needs on this machine, got {allowed:g}; give more time, or fewer samples"
            )

    def _beginning(self) -> tuple[_State, Tensor | None]:
        """Return where to begin, and the random state that belongs to it: where a killed training was, or the start."""
        kept = self._checkpoint.read()
        if kept is not None:
            self._module.load_state_dict(kept["module"])
            self._optimizer.load_state_dict(kept["optimizer"])
            fields = kept["state"]
            rows = [HistoryRow(**row) for row in fields.pop("rows")]
            state = _State(rows=rows, best=kept["best"], watch=LossWatch(**fields.pop("watch")), **fields)
            return state, kept["generator"]
        state = _State(step=self._first_step, best_step=self._first_step)
        self._hold_zeros()
        started = self._clock()
        self._look(state)
        state.seconds = self._clock() - started
        return state, None

    def _keep(self, state: _State) -> None:
        self._checkpoint.write(
            {
                "module": self._module.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "generator": torch.get_rng_state(),
                "best": state.best,
                "state": {
                    "step": state.step,
                    "seconds": state.seconds,
                    "looked": state.looked,
                    "best_step": state.best_step,
                    "losses": state.losses,
                    "rows": [asdict(row) for row in state.rows],
                    "watch": asdict(state.watch),
                },
            }
        )


def _best_quality(state: _State) -> float:
    return next(row.quality for row in state.rows if row.step == state.best_step)


def _words(state: _State) -> str:
    return f"loss {state.watch.smoothed:.4g}, quality {state.rows[-1].quality:.4f} (best {_best_quality(state):.4f})"
