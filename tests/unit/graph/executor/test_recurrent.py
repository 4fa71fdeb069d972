from typing import Any

import numpy as np
import pytest
import torch
from unit.graph.executor.parity import Case, assert_parity, computed, module

from serveprune.errors import InvalidArgument

_RANDOM = np.random.default_rng(0)
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STEPS, _BATCH, _READ, _HIDDEN = 6, 3, 5, 4
_LENGTHS = np.array([4, 6, 1], np.int32)


def _numbers(*shape: int) -> np.ndarray:
    return (_RANDOM.standard_normal(shape) * 0.6).astype(np.float32)


def _case(
    kind: str,
    *,
    direction: str = "forward",
    bias: bool = True,
    lengths: bool = False,
    states: bool = False,
    opset: int = 14,
    **attributes: Any,
) -> Case:
    directions, gates = (2 if direction == "bidirectional" else 1), _GATES[kind] * _HIDDEN
    inputs = [
        _numbers(_STEPS, _BATCH, _READ),
        _numbers(directions, gates, _READ),
        _numbers(directions, gates, _HIDDEN),
        _numbers(directions, 2 * gates) if bias else None,
        _LENGTHS if lengths else None,
        _numbers(directions, _BATCH, _HIDDEN) if states else None,
    ]
    if kind == "LSTM":
        inputs.append(_numbers(directions, _BATCH, _HIDDEN) if states else None)
    return Case(
        kind,
        inputs,
        {"hidden_size": _HIDDEN, "direction": direction, **attributes},
        constants=(1, 2, 3),
        outputs=(True, True, True)[: 3 if kind == "LSTM" else 2],
        opset=opset,
        name=f"{direction}-bias={bias}-lengths={lengths}-states={states}-{attributes}",
    )


_DIRECTIONS = ("forward", "reverse", "bidirectional")
_AFTER_PRODUCT: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {"linear_before_reset": 1}, "RNN": {}}
_FORMS: list[dict[str, bool]] = [
    {"bias": False},
    {"states": True},
    {"lengths": True},
    {"lengths": True, "states": True},
]
_CASES = [
    *(
        _case(kind, direction=direction, **form, **_AFTER_PRODUCT[kind])
        for kind in _GATES
        for direction in _DIRECTIONS
        for form in _FORMS
    ),
    *(_case("GRU", direction=direction, **form) for direction in _DIRECTIONS for form in _FORMS),
    _case("RNN", activations=["Relu"]),
    _case("RNN", direction="bidirectional", activations=["Relu", "Relu"]),
    _case("LSTM", activations=["Sigmoid", "Tanh", "Tanh"], opset=7),
]


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_recurrence_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


@pytest.mark.parametrize("kind", _GATES)
def test_recurrence_turns_its_axes_when_the_batch_comes_first(kind: str) -> None:
    case = _case(kind, states=True)
    inputs = [
        array if slot in (1, 2, 3) or array is None else array.swapaxes(0, 1) for slot, array in enumerate(case.inputs)
    ]
    turned = Case(kind, inputs, {**case.attributes, "layout": 1}, constants=(1, 2, 3), outputs=case.outputs, opset=14)
    expected = computed(case.model(), case.feeds())
    got = computed(turned.model(), turned.feeds())
    # (steps, directions, batch, hidden) becomes (batch, steps, directions, hidden).
    torch.testing.assert_close(got["y0"], expected["y0"].permute(2, 0, 1, 3))
    torch.testing.assert_close(got["y1"], expected["y1"].transpose(0, 1))


@pytest.mark.parametrize("kind", _GATES)
@pytest.mark.parametrize("lengths", [False, True])
def test_recurrence_has_the_gradient_of_its_numbers_when_differentiated(kind: str, lengths: bool) -> None:
    case = _case(kind, direction="bidirectional", lengths=lengths)
    recurrence = module(case.model()).double()
    data = torch.from_numpy(case.feeds()["x0"]).double().requires_grad_()
    others = {"x4": torch.from_numpy(_LENGTHS)} if lengths else {}
    learned = list(recurrence.weights.values())
    assert len(learned) == 3

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        given = dict(zip(recurrence.weights, weights, strict=True))
        made: torch.Tensor = torch.func.functional_call(recurrence, given, ({"x0": x, **others},))["y0"]
        return made

    assert torch.autograd.gradcheck(run, (data, *(each.detach().requires_grad_() for each in learned)), fast_mode=True)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"clip": 3.0}, "expected LSTM node without clip, input_forget and peepholes"),
        (
            {"activations": ["Sigmoid", "Relu", "Tanh"]},
            "expected the activations sigmoid, tanh, tanh in LSTM node; got sig",
        ),
    ],
)
def test_recurrence_is_refused_when_no_kernel_computes_its_form(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        module(_case("LSTM", **attributes).model())
