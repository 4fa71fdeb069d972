from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from unit.compression.lottery.classifiers import classifier_graph, labelled_dataset

from serveprune.compression.learning.training import Training
from serveprune.compression.lottery.draw import Drawing, Drawn
from serveprune.compression.lottery.initialization import redraw
from serveprune.compression.lottery.samples import LotterySamples, Scores
from serveprune.config.lottery import LotteryOptions
from serveprune.errors import BuildFailed, InvalidArgument
from serveprune.graph.executor.graph_module import GraphModule

State = dict[str, Tensor]


class Killed(BaseException):
    """What the test does to the drawing."""


def options(**changed: Any) -> LotteryOptions:
    training = {"budget": {"epochs": 4}, "batch_size": 16, "learning_rate": 0.05, "validations": 4}
    training |= changed.pop("training", {})
    return LotteryOptions.model_validate({"rounds": 2, "sparsity": 0.75, "training": training} | changed)


def drawing(
    folder: Path,
    chosen: LotteryOptions,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] = lambda done, words: None,
) -> Drawing:
    return Drawing(
        ir.load(classifier_graph(folder / "net.onnx")),
        chosen,
        name="net",
        samples=LotterySamples.of(labelled_dataset(), held_out=0.3),
        scores=Scores("scores", probabilities=False),
        checkpoint=checkpoint,
        progress=progress,
    )


class Beginnings:
    """What the module held when each training began, and what it held after some step of the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: int = 0) -> None:
        self.states: list[State] = []
        self.masks: list[dict[str, Tensor]] = []
        self.at_step: State = {}
        run, seen = Training.run, self

        def spied(training: Training) -> Any:
            module = training._module
            first = not seen.states
            seen.states.append({name: each.clone() for name, each in module.state_dict().items()})
            seen.masks.append({str(id(weight)): mask for weight, mask in training._masked})
            told = training._after_step

            def after(done: int) -> None:
                if first and done == step:
                    seen.at_step = {name: each.clone() for name, each in module.state_dict().items()}
                if told is not None:
                    told(done)

            training._after_step = after
            return run(training)

        monkeypatch.setattr(Training, "run", spied)


def zeros(drawn: Drawn) -> dict[str, int]:
    return {name: int((drawn.state[name] == 0).sum()) for name in drawn.masks}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_drawing_leaves_a_ticket_with_exactly_the_zeros_of_its_mask(tmp_path: Path) -> None:
    drawn = drawing(tmp_path, options()).run()
    assert list(drawn.masks) == ["in.weight", "mid.weight"]  # the last layer is left out
    total = sum(mask.numel() for mask in drawn.masks.values())
    assert [each.zeros for each in drawn.rounds] == [round(0.5 * total), round(0.75 * total)]
    assert drawn.left == 2
    for name, mask in drawn.masks.items():
        assert torch.equal(drawn.state[name] != 0, mask)
        assert not torch.signbit(drawn.state[name][~mask]).any()
    assert drawn.dense.accuracy > 0.8
    assert drawn.rounds[-1].ticket.accuracy > 0.6
    assert all(each.reinitialized is not None for each in drawn.rounds)


@pytest.mark.parametrize("step", [0, 7])
def test_every_round_begins_bit_for_bit_with_what_the_first_training_had_at_the_rewind_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    seen = Beginnings(monkeypatch, step=step)
    drawing(tmp_path, options(rewind={"step": step}, reinitialize=False)).run()
    dense, *rounds = seen.states
    wanted = seen.at_step if step else dense
    assert len(rounds) == 2
    assert all(same(state, wanted) for state in rounds)
    assert same(dense, wanted) == (step == 0)


def test_a_ticket_trains_from_the_rewind_step_to_the_end_of_the_schedule(tmp_path: Path) -> None:
    drawn = drawing(tmp_path, options(rewind={"step": 7})).run()
    (first, _) = drawn.rounds
    assert first.reinitialized is not None
    assert first.ticket.steps == drawn.dense.steps - 7
    assert first.reinitialized.steps == drawn.dense.steps


def test_rewinding_the_learning_rate_keeps_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Beginnings(monkeypatch)
    drawn = drawing(tmp_path, options(rewind={"learning_rate": 3}, rounds=1, sparsity=0.5, reinitialize=False)).run()
    dense, ticket = seen.states
    assert not same(dense, ticket)
    assert drawn.rounds[0].ticket.steps == drawn.dense.steps - 3


def test_a_random_reinitialization_has_other_weights_and_the_same_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Beginnings(monkeypatch)
    drawing(tmp_path, options()).run()
    dense, ticket, control, _, second = seen.states
    assert same(dense, ticket)
    for name in ("in.weight", "mid.weight", "out.weight"):
        assert not torch.equal(ticket[name], control[name])
        assert not torch.equal(control[name], second[name])
    masks = [list(each.values()) for each in seen.masks]
    assert masks[0] == []
    assert all(torch.equal(one, other) for one, other in zip(masks[1], masks[2], strict=True))


def test_drawing_goes_back_to_a_checkpoint_and_begins_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.load(classifier_graph(tmp_path / "net.onnx"))
    redraw(model, seed=77)
    state = GraphModule(model, name="net").state_dict()
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "start.safetensors")
    seen = Beginnings(monkeypatch)
    drawing(tmp_path, options(rewind={"checkpoint": tmp_path / "start.safetensors"}, reinitialize=False)).run()
    assert all(same(each, state) for each in seen.states)


def test_drawing_trains_nothing_before_the_first_round_when_the_graph_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = GraphModule(ir.load(classifier_graph(tmp_path / "net.onnx")), name="net").state_dict()
    seen = Beginnings(monkeypatch)
    drawn = drawing(tmp_path, options(start="trained", rounds=1, sparsity=0.5, reinitialize=False)).run()
    assert drawn.dense.steps == 0
    (ticket,) = seen.states
    assert same(ticket, given)
    kept = given["mid.weight"].abs()[drawn.masks["mid.weight"]].min()
    assert kept >= given["mid.weight"].abs()[~drawn.masks["mid.weight"]].max()


@pytest.mark.parametrize("look", [1, 3, 6, 11, 15, 19])
def test_a_drawing_that_was_killed_in_a_training_gives_what_one_in_peace_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    chosen = options(rewind={"step": 5})
    peaceful = drawing(tmp_path, chosen).run()
    keep, looks = Training._keep, 0

    def kill(training: Training, state: Any) -> None:
        nonlocal looks
        keep(training, state)
        looks += 1
        if looks == look:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_keep", kill)
        with pytest.raises(Killed):
            drawing(tmp_path, chosen, checkpoint=tmp_path / "kept").run()
    told: list[float] = []
    again = drawing(tmp_path, chosen, checkpoint=tmp_path / "kept", progress=lambda done, words: told.append(done))
    resumed = again.run()
    assert same(resumed.state, peaceful.state)
    assert [each.ticket.accuracy for each in resumed.rounds] == [each.ticket.accuracy for each in peaceful.rounds]
    assert told[0] >= look / 20  # of five trainings with four looks: what was learned is not learned again
    again.forget()
    assert not list(tmp_path.glob("kept*"))


def test_a_drawing_that_was_killed_at_the_very_end_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaceful = drawing(tmp_path, options(), checkpoint=tmp_path / "kept").run()
    seen = Beginnings(monkeypatch)
    resumed = drawing(tmp_path, options(), checkpoint=tmp_path / "kept").run()
    assert seen.states == []
    assert same(resumed.state, peaceful.state)
    assert (resumed.rounds, resumed.dense, resumed.left) == (peaceful.rounds, peaceful.dense, peaceful.left)


def test_drawing_gives_the_same_for_the_same_seed_and_else_something_else(tmp_path: Path) -> None:
    first, again = drawing(tmp_path, options()).run(), drawing(tmp_path, options()).run()
    other = drawing(tmp_path, options(training={"seed": 1})).run()
    assert same(first.state, again.state)
    assert not same(first.state, other.state)


def test_drawing_leaves_the_sparsest_ticket_that_loses_no_more_than_allowed(tmp_path: Path) -> None:
    generous = drawing(tmp_path, options(rounds=4, sparsity=0.99, accuracy_loss=0.9, reinitialize=False)).run()
    assert generous.left == 4
    strict = drawing(tmp_path, options(rounds=4, sparsity=0.99, accuracy_loss=0.05, reinitialize=False)).run()
    good = [each.round for each in strict.rounds if strict.dense.accuracy - each.ticket.accuracy <= 0.05]
    assert strict.left == max(good) < 4
    assert sum(zeros(strict).values()) == strict.rounds[strict.left - 1].zeros


def test_drawing_warns_and_leaves_the_best_when_every_ticket_loses_too_much(tmp_path: Path) -> None:
    chosen = options(rounds=2, sparsity=0.995, accuracy_loss=0.0, reinitialize=False)
    drawn = drawing(tmp_path, chosen).run()
    accuracies = {each.round: each.ticket.accuracy for each in drawn.rounds}
    assert max(accuracies.values()) < drawn.dense.accuracy
    assert accuracies[drawn.left] == max(accuracies.values())
    assert "no ticket loses at most 0 of accuracy" in drawn.warnings[0]


def test_drawing_warns_when_nothing_is_left_of_a_layer(tmp_path: Path) -> None:
    drawn = drawing(tmp_path, options(rounds=1, sparsity=0.999, reinitialize=False)).run()
    assert any("nothing is left of in.weight" in warning or "mid.weight" in warning for warning in drawn.warnings)


def test_drawing_fails_and_says_what_to_lower_when_the_dense_network_never_learns(tmp_path: Path) -> None:
    wild = options(training={"learning_rate": 1e30})
    with pytest.raises(BuildFailed, match=r"ran away.*learning_rate below 1e\+30"):
        drawing(tmp_path, wild).run()


def test_drawing_refuses_a_rewind_step_that_the_training_never_reaches(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"rewind\.step: expected less than the \d+ steps.*got 4000"):
        drawing(tmp_path, options(rewind={"step": 4000}))


def test_drawing_refuses_when_all_layers_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"in the graph are: in\.weight, mid\.weight, out\.weight"):
        drawing(tmp_path, options(ignore=["in*", "mid"]))


def test_drawing_prunes_the_last_layer_and_not_the_first_when_told_so(tmp_path: Path) -> None:
    assert drawing(tmp_path, options(leave_out=["first"])).prunable == ("mid.weight", "out.weight")
    assert drawing(tmp_path, options(leave_out=[])).prunable == ("in.weight", "mid.weight", "out.weight")
