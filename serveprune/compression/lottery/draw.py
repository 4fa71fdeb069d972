"""Iterative magnitude pruning with rewinding, round after round, and on from there after a kill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from serveprune.compression.learning.batches import ShuffledBatches
from serveprune.compression.learning.checkpoint import CheckpointFile
from serveprune.compression.learning.history import Ending, History
from serveprune.compression.learning.training import Training
from serveprune.compression.lottery.initialization import redraw, take_weights
from serveprune.compression.lottery.layers import prunable_weights
from serveprune.compression.lottery.masks import Masks, full_masks, removed, sparser
from serveprune.compression.lottery.report import LotteryRound, TrainedNetwork
from serveprune.compression.lottery.samples import LotterySamples, Scores, accuracy, cross_entropy, require_fitting
from serveprune.config.lottery import LotteryOptions
from serveprune.errors import BuildFailed, InvalidArgument
from serveprune.graph.executor.graph_module import GraphModule

_State = dict[str, Tensor]
_UNTRAINED = "none"


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the rounds gave.

    Attributes:
        state: Of the module with the ticket that is left: weights and running statistics, removed weights zero.
        masks: Of that ticket.
        left: Its round.
        kept_as_given: Learned constants that could not be drawn anew.
    """

    state: _State
    masks: Masks
    left: int
    dense: TrainedNetwork
    rounds: tuple[LotteryRound, ...]
    kept_as_given: tuple[str, ...]
    warnings: tuple[str, ...]


class Drawing:
    """Trains dense, removes the smallest weights, rewinds the others, trains again, and so on."""

    def __init__(
        self,
        model: ir.Model,
        options: LotteryOptions,
        *,
        name: str,
        samples: LotterySamples,
        scores: Scores,
        checkpoint: Path | None,
        progress: Callable[[float, str], None],
    ) -> None:
        """Look whether all that is asked for can be done; nothing is trained yet.

        Args:
            model: A prepared graph; not changed.
            options: Rounds, rewinding, recipe.
            name: Of the model, for messages.
            samples: Labelled ones.
            scores: The output that labels belong to.
            checkpoint: What the files begin with that a lottery that was killed goes on from: a path unique to all that
                it depends on. None keeps nothing.
            progress: Takes the part that is done, and words.

        Raises:
            InvalidArgument: The graph, the samples or the options do not allow it.
        """
        self._model, self._name, self._options = model, name, options
        self._samples, self._scores, self._progress = samples, scores, progress
        self._module = GraphModule(model, name=name)
        require_fitting(self._module, samples, scores)
        self.prunable = prunable_weights(model, options)
        """Names of the weights that may be removed."""
        self._batches = ShuffledBatches(
            samples.learned, batch_size=options.training.batch_size, seed=options.training.seed
        )
        self._require_steps()
        self._checkpoint = checkpoint
        self._file = CheckpointFile(self._beside("rounds"))
        draws = options.reinitialize or (options.start == "random" and options.rewind.checkpoint is None)
        self._kept_as_given = redraw(model.clone(), seed=0) if draws else ()
        self._state: dict[str, Any] = {"done": {}}
        self._trainings = (options.start != "trained") + options.rounds * (1 + options.reinitialize)

    @property
    def module(self) -> GraphModule:
        """The graph that learns."""
        return self._module

    def run(self) -> Drawn:
        """Draw.

        Raises:
            BuildFailed: The loss of the first training ran away before anything was learned.
        """
        self._state = self._file.read() or self._state
        start = self._start()
        dense = self._dense(start)
        rounds: list[LotteryRound] = []
        for count, sparsity in enumerate(self._options.sparsities, start=1):
            rounds.append(self._round(count, sparsity, dense=dense))
        state, left = self._state, int(self._state["left"])
        masks, trained = state["left_masks"], state["left_state"]
        warnings = tuple(self._warnings(dense, rounds, left, masks))
        return Drawn(trained, masks, left, dense, tuple(rounds), self._kept_as_given, warnings)

    def forget(self) -> None:
        """Remove what was kept for the case of a kill."""
        self._file.remove()

    def _start(self) -> _State:
        """Return what the first training begins with; the first part of what a rewind goes back to."""
        options = self._options
        if options.rewind.checkpoint is not None:
            checkpoint = self._changed(lambda model: take_weights(model, options.rewind.checkpoint or Path()))
            return self._given() if options.start == "trained" else checkpoint
        return self._drawn(0) if options.start == "random" else self._given()

    def _dense(self, start: _State) -> TrainedNetwork:
        if "dense" not in self._state["done"]:
            self._module.load_state_dict(start)
            if self._options.start == "trained":
                judged = accuracy(self._module, self._samples.judged, self._scores)
                found = TrainedNetwork(accuracy=judged, steps=0, best_step=0, ended_by=_UNTRAINED, seconds=0.0)
            else:
                found = self._first_training()
            self._keep("dense", found, trained=self._copy(), masks=full_masks(self._prunable_tensors()))
        return TrainedNetwork.model_validate(self._state["done"]["dense"])

    def _first_training(self) -> TrainedNetwork:
        rewind_step = self._options.rewind.step

        def capture(step: int) -> None:
            # Kept at once: a training that goes on after a kill does not pass this step again.
            if step == rewind_step:
                self._state["rewound"] = self._copy()
                self._file.write(self._state)

        history, found = self._train("dense", masks=None, first_step=0, after_step=capture)
        if history.ending is Ending.DIVERGED and not history.improved:
            raise BuildFailed(
                f"lottery: the loss of the dense network ran away after {history.steps} steps, before anything was "
                f"learned; expected a training.learning_rate below {self._options.training.learning_rate:g}"
            )
        return found

    def _round(self, count: int, sparsity: float, *, dense: TrainedNetwork) -> LotteryRound:
        state, ticket_name, control_name = self._state, f"ticket-{count}", f"reinitialized-{count}"
        if ticket_name not in state["done"]:
            masks = self._next_masks(sparsity)
            self._module.load_state_dict(self._rewound())
            first = self._options.rewind.first_step
            _, ticket = self._train(ticket_name, masks=masks, first_step=first)
            trained = self._zeroed(self._copy(), masks)
            if self._is_left(count, ticket, dense=dense):
                state |= {"left": count, "left_masks": masks, "left_state": trained}
            state[f"zeros-{count}"] = removed(masks)
            self._keep(ticket_name, ticket, trained=trained, masks=masks)
        if self._options.reinitialize and control_name not in state["done"]:
            self._module.load_state_dict(self._drawn(count))
            _, control = self._train(control_name, masks=state["masks"], first_step=0)
            self._keep(control_name, control)
        zeros = int(state[f"zeros-{count}"])
        total = sum(weight.numel() for weight in self._prunable_tensors().values())
        return LotteryRound(
            round=count,
            sparsity=zeros / total,
            zeros=zeros,
            ticket=TrainedNetwork.model_validate(state["done"][ticket_name]),
            reinitialized=TrainedNetwork.model_validate(state["done"][control_name])
            if self._options.reinitialize
            else None,
        )

    def _next_masks(self, sparsity: float) -> Masks:
        self._module.load_state_dict(self._state["trained"])
        return sparser(self._prunable_tensors(), self._state["masks"], sparsity=sparsity, scope=self._options.scope)

    def _rewound(self) -> _State:
        """Return what a round begins with."""
        rewind = self._options.rewind
        if rewind.learning_rate is not None:
            return dict(self._state["trained"])
        if rewind.checkpoint is not None:
            return self._changed(lambda model: take_weights(model, rewind.checkpoint or Path()))
        return self._start() if not rewind.step else dict(self._state["rewound"])

    def _train(
        self,
        stage: str,
        *,
        masks: Masks | None,
        first_step: int,
        after_step: Callable[[int], None] | None = None,
    ) -> tuple[History, TrainedNetwork]:
        """Train what the module holds, and leave the best weights in it."""
        done, dataset = len(self._state["done"]), self._samples.learned
        training = Training(
            self._module,
            self._options.training,
            batches=self._batches,
            loss=lambda feeds, indices: cross_entropy(self._module, dataset, self._scores, feeds, indices),
            validate=lambda: accuracy(self._module, self._samples.choosing, self._scores),
            masks=masks,
            weights=self._module.weights,
            first_step=first_step,
            checkpoint=self._beside(stage),
            on_progress=lambda part, words: self._progress((done + part) / self._trainings, f"{stage}: {words}"),
            after_step=after_step,
        )
        history = training.run()
        judged = accuracy(self._module, self._samples.judged, self._scores)
        return history, TrainedNetwork(
            accuracy=judged,
            steps=history.steps - first_step,
            best_step=history.best_step,
            ended_by=str(history.ending),
            seconds=round(history.seconds, 3),
        )

    def _keep(self, stage: str, found: TrainedNetwork, **changed: object) -> None:
        """Note a training as done, so that it is not done again; then its own checkpoint may go."""
        self._state |= changed
        self._state["done"][stage] = found.model_dump()
        self._file.write(self._state)
        CheckpointFile(self._beside(stage)).remove()
        self._progress(min(1.0, len(self._state["done"]) / max(1, self._trainings)), stage)

    def _is_left(self, count: int, ticket: TrainedNetwork, *, dense: TrainedNetwork) -> bool:
        """Tell whether this ticket is to be left, as far as is known until now."""
        allowed = self._options.accuracy_loss
        if allowed is None or "left" not in self._state:
            return True
        if dense.accuracy - ticket.accuracy <= allowed:
            return True
        before = float(self._state["done"][f"ticket-{self._state['left']}"]["accuracy"])
        # As long as none is good enough, the best one.
        return dense.accuracy - before > allowed and ticket.accuracy > before

    def _warnings(
        self, dense: TrainedNetwork, rounds: list[LotteryRound], left: int, masks: Mapping[str, Tensor]
    ) -> list[str]:
        options, found = self._options, []
        trainings = {
            "the dense network": dense,
            **{f"the ticket of round {each.round}": each.ticket for each in rounds},
        }
        for name, training in trainings.items():
            if training.ended_by == Ending.DIVERGED:
                found.append(
                    f"the loss of {name} ran away; its best weights were kept: lower training.learning_rate, now "
                    f"{options.training.learning_rate:g}"
                )
        lost = dense.accuracy - rounds[left - 1].ticket.accuracy
        if options.accuracy_loss is not None and lost > options.accuracy_loss:
            found.append(
                f"no ticket loses at most {options.accuracy_loss:g} of accuracy; left is the best, of round {left}, "
                f"which loses {lost:.4f}: remove less in each round, rewind to a later step, or train longer"
            )
        emptied = [name for name, mask in masks.items() if not mask.any()]
        if emptied:
            found.append(f"nothing is left of {', '.join(emptied)}; scope: layer, or ignore, keeps some of every layer")
        return found

    def _require_steps(self) -> None:
        budget, per_epoch = self._options.training.budget, self._batches.steps_per_epoch
        steps = budget.steps or max(1, round((budget.epochs or 0) * per_epoch))
        rewind = self._options.rewind
        if rewind.first_step >= steps:
            key = "step" if rewind.step else "learning_rate"
            raise InvalidArgument(
                f"lottery: rewind.{key}: expected less than the {steps} steps of a training ({per_epoch} steps see the "
                f"{len(self._samples.learned)} samples once), got {rewind.first_step}; train longer, or rewind earlier"
            )

    def _drawn(self, count: int) -> _State:
        """Return weights drawn anew, others for each round."""
        (seed,) = np.random.SeedSequence([self._options.training.seed, count]).generate_state(1)
        return self._changed(lambda model: redraw(model, seed=int(seed)))

    def _changed(self, change: Callable[[ir.Model], object]) -> _State:
        """Return the module's state as it is for a graph with other weights."""
        model = self._model.clone()
        change(model)
        return _copied(GraphModule(model, name=self._name).state_dict())

    def _given(self) -> _State:
        return self._changed(lambda model: None)

    def _copy(self) -> _State:
        return _copied(self._module.state_dict())

    def _zeroed(self, state: _State, masks: Mapping[str, Tensor]) -> _State:
        """Write plain zeros, for a product with zero may be a negative one."""
        self._module.load_state_dict(state)
        for name, weight in self._prunable_tensors().items():
            weight.masked_fill_(~masks[name], 0.0)
        return self._copy()

    def _prunable_tensors(self) -> dict[str, Tensor]:
        weights = self._module.weights
        return {name: weights[name].detach() for name in self.prunable}

    def _beside(self, what: str) -> Path | None:
        return None if self._checkpoint is None else self._checkpoint.with_name(f"{self._checkpoint.name}.{what}.pt")


def _copied(state: Mapping[str, Tensor]) -> _State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
