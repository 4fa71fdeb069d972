from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from unit.graph.executor.parity import Case, answers, assert_parity, computed, module

from serveprune.errors import InvalidArgument

_RANDOM = np.random.default_rng(0)


def _numbers(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _three(*, heads: int = 4, shared: int = 4, length: int = 5, total: int = 5, size: int = 8) -> list[np.ndarray]:
    return [_numbers(2, heads, length, size), _numbers(2, shared, total, size), _numbers(2, shared, total, size)]


def _flat(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array.transpose(0, 2, 1, 3).reshape(2, array.shape[2], -1) for array in arrays]


def _seen(*shape: int) -> np.ndarray:
    mask = _RANDOM.random(shape) < 0.7
    mask[..., 0] = True
    return mask


def _own(
    inputs: Sequence[np.ndarray | None], *, name: str, outputs: tuple[bool, ...] = (True,), **attributes: Any
) -> Case:
    return Case("Attention", inputs, attributes, outputs=outputs, opset=23, name=name)


_PAST = [_numbers(2, 4, 3, 8), _numbers(2, 4, 3, 8)]
_OWN = [
    _own([*_three()], name="four-axes"),
    _own([*_three()], name="scale", scale=0.3),
    _own([*_three()], name="causal", is_causal=1),
    _own([*_three(total=7)], name="across", scale=0.3),
    _own([*_three(), _numbers(5, 5)], name="float-mask"),
    _own([*_three(), _numbers(2, 1, 5, 5)], name="float-mask-per-sample"),
    _own([*_three(), _seen(2, 4, 5, 5)], name="bool-mask"),
    _own([*_three(), _seen(5, 5)], name="bool-mask-causal", is_causal=1),
    _own([*_three(heads=4, shared=2)], name="grouped"),
    _own([*_three(heads=6, shared=2), _numbers(6, 5, 5)], name="grouped-mask"),
    _own(_flat(_three()), name="three-axes", q_num_heads=4, kv_num_heads=4),
    _own(_flat(_three(heads=4, shared=1)), name="three-axes-grouped", q_num_heads=4, kv_num_heads=1, is_causal=1),
    _own([*_three()], name="softcap", softcap=0.7),
    _own([*_three(), _numbers(5, 5)], name="softcap-mask", softcap=0.7, is_causal=1),
    _own([*_three(), None, *_PAST], name="past", outputs=(True, True, True), is_causal=1),
    _own([*_three(), _numbers(5, 8), *_PAST], name="past-mask", outputs=(True, True, True)),
    *(
        _own(
            [*_three(), _numbers(5, 5)],
            name=f"shown-{mode}",
            outputs=(True, False, False, True),
            softcap=0.9,
            scale=0.4,
            qk_matmul_output_mode=mode,
        )
        for mode in range(4)
    ),
]


def _many(
    inputs: Sequence[np.ndarray | None], *, name: str, outputs: tuple[bool, ...] = (True,), **attributes: Any
) -> Case:
    return Case("com.microsoft::MultiHeadAttention", inputs, {"num_heads": 4, **attributes}, outputs=outputs, name=name)


_KEPT = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
_MANY = [
    _many([*_flat(_three())], name="plain"),
    _many([*_flat(_three(total=7))], name="across", scale=0.2),
    _many([*_flat(_three()), _numbers(96)], name="bias", unidirectional=1),
    _many([*_flat(_three()), None, _KEPT], name="padding"),
    _many([*_flat(_three()), None, np.array([3, 5], np.int32)], name="lengths"),
    _many([*_flat(_three()), None, _seen(2, 5, 5).astype(np.int32)], name="mask-per-query"),
    _many([*_flat(_three()), None, _KEPT, _numbers(1, 4, 5, 5)], name="padding-and-bias", mask_filter_value=-500.0),
    _many([_flat(_three())[0], *_three()[1:]], name="keys-by-head"),
    _many([*_flat(_three()), None, None, None, *_PAST], name="past", outputs=(True, True, True)),
]


def _projecting(
    inputs: Sequence[np.ndarray | None], *, name: str, outputs: tuple[bool, ...] = (True,), **attributes: Any
) -> Case:
    return Case(
        "com.microsoft::Attention",
        inputs,
        {"num_heads": 4, **attributes},
        constants=(1, 2),
        outputs=outputs,
        name=name,
    )


_X, _WEIGHT, _BIAS = _numbers(2, 5, 12), _numbers(12, 96) / 3, _numbers(96)
_PROJECTING = [
    _projecting([_X, _WEIGHT, _BIAS], name="plain"),
    _projecting([_X, _WEIGHT, _BIAS], name="scale", unidirectional=1, scale=0.2),
    _projecting([_X, _WEIGHT[:, :80], _BIAS[:80]], name="sizes", qkv_hidden_sizes=[32, 32, 16]),
    _projecting([_X, _WEIGHT, _BIAS, _KEPT], name="padding"),
    _projecting([_X, _WEIGHT, _BIAS, np.array([3, 5], np.int32)], name="ends"),
    _projecting([_X, _WEIGHT, _BIAS, np.array([3, 5, 1, 0], np.int32)], name="ends-and-starts"),
    _projecting([_X, _WEIGHT, _BIAS, _seen(2, 5, 5).astype(np.int32)], name="mask-per-query"),
    _projecting([_X, _WEIGHT, _BIAS, None, None, _numbers(2, 4, 5, 5)], name="bias-of-scores"),
    _projecting(
        [_X, _WEIGHT, _BIAS, None, _numbers(2, 2, 4, 3, 8)], name="past", outputs=(True, True), unidirectional=1
    ),
]


def _angles(positions: int, pairs: int) -> list[np.ndarray]:
    angles = np.arange(positions)[:, None] / 10 ** (np.arange(pairs) / pairs)
    return [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]


_TABLES = _angles(9, 4)
_PLACES = np.array([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])
_ROTARY = [
    *(
        Case("RotaryEmbedding", [_numbers(2, 4, 5, 8), *_TABLES, _PLACES], {"interleaved": way}, opset=23)
        for way in (0, 1)
    ),
    Case("RotaryEmbedding", [_numbers(2, 5, 32), *_TABLES, _PLACES], {"num_heads": 4}, opset=23),
    Case("RotaryEmbedding", [_numbers(2, 4, 5, 8), *(table[_PLACES] for table in _TABLES)], opset=23, name="chosen"),
    Case("RotaryEmbedding", [_numbers(2, 4, 5, 12), *_TABLES, _PLACES], {"rotary_embedding_dim": 8}, opset=23),
    *(
        Case("com.microsoft::RotaryEmbedding", [_numbers(2, 4, 5, 8), _PLACES, *_TABLES], {"interleaved": way})
        for way in (0, 1)
    ),
    Case("com.microsoft::RotaryEmbedding", [_numbers(2, 5, 32), np.array([3]), *_TABLES], name="first-position"),
    Case(
        "com.microsoft::RotaryEmbedding",
        [_numbers(2, 5, 32), _PLACES, *_angles(9, 2)],
        {"num_heads": 4, "rotary_embedding_dim": 4},
    ),
]


@pytest.mark.parametrize("case", [*_OWN, *_MANY, *_PROJECTING, *_ROTARY], ids=str)
def test_attention_equals_onnx_runtime_when_computed_by_torch(case: Case) -> None:
    assert_parity(case)


def _grouped(inputs: Sequence[np.ndarray | None], lengths: tuple[int, int], *, name: str, **attributes: Any) -> Case:
    three = [*inputs, *(None,) * (3 - len(inputs))]
    settings = [None, None, np.array(lengths, np.int32) - 1, np.array(5, np.int32)]
    return Case(
        "com.microsoft::GroupQueryAttention",
        [*three, *settings, *_angles(9, 8)] if attributes.get("do_rotary") else [*three, *settings],
        {"num_heads": 4, "kv_num_heads": 2, **attributes},
        outputs=(True, True, True),
        name=name,
    )


@pytest.mark.parametrize(
    "case",
    [
        _grouped([*_flat(_three(shared=2))], (5, 5), name="plain"),
        _grouped([*_flat(_three(shared=2))], (5, 5), name="scale-and-cap", scale=0.2, softcap=0.8),
        _grouped([*_flat(_three(shared=2))], (5, 3), name="lengths"),
        _grouped([*_flat(_three(shared=2))], (5, 5), name="window", local_window_size=2),
        _grouped([_numbers(2, 5, 64)], (5, 5), name="packed"),
        _grouped([*_flat(_three(shared=2, size=16))], (5, 5), name="rotary", do_rotary=1),
        _grouped(
            [*_flat(_three(shared=2, size=16))], (5, 5), name="rotary-interleaved", do_rotary=1, rotary_interleaved=1
        ),
    ],
    ids=str,
)
def test_grouped_attention_equals_onnx_runtime_when_positions_are_no_padding(case: Case) -> None:
    model, lengths = case.model(), case.inputs[5]
    assert lengths is not None
    expected = answers(model, case.feeds())[0]
    got = computed(model, case.feeds())["y0"].numpy()
    for row, last in enumerate(lengths):
        np.testing.assert_allclose(got[row, : last + 1], expected[row, : last + 1], atol=1e-5)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (_many([*_flat(_three()), *(None,) * 5, np.array([3], np.int32)], name=""), "no cache shared by beams"),
        (
            _many([_numbers(2, 5, 4, 3, 8)], name=""),
            "expected MultiHeadAttention node with query, keys and values apart",
        ),
        (_projecting([_X, _WEIGHT, _BIAS], name="", do_rotary=1), "without rotation and buffered cache"),
        (
            Case(
                "com.microsoft::GroupQueryAttention",
                [*_flat(_three()), *_PAST, np.array([4, 4], np.int32), np.array(5, np.int32)],
                {"num_heads": 4, "kv_num_heads": 4},
            ),
            "expected GroupQueryAttention node without cache and sinks",
        ),
    ],
)
def test_attention_is_refused_when_no_kernel_computes_its_form(case: Case, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        module(case.model())


@pytest.mark.parametrize(
    "case",
    [
        _own([*_three(heads=2, shared=1, length=3, total=3, size=2), _seen(3, 3)], name="grouped-mask", is_causal=1),
        _own([*_three(heads=2, shared=2, length=3, total=3, size=2)], name="softcap", softcap=0.7),
        Case("RotaryEmbedding", [_numbers(1, 2, 5, 8), *_TABLES, _PLACES[:1]], constants=(1, 2), opset=23),
    ],
    ids=str,
)
def test_attention_has_the_gradient_of_its_numbers_when_differentiated(case: Case) -> None:
    attention = module(case.model()).double()
    feeds = {
        name: torch.from_numpy(array).double().requires_grad_()
        if array.dtype == np.float32
        else torch.from_numpy(array)
        for name, array in case.feeds().items()
    }
    learned = [name for name, value in feeds.items() if value.requires_grad]

    def run(*values: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = attention({**feeds, **dict(zip(learned, values, strict=True))})["y0"]
        return made

    assert torch.autograd.gradcheck(run, tuple(feeds[name] for name in learned))


def test_attention_has_finite_gradients_when_a_row_sees_nothing() -> None:
    mask = np.zeros((5, 5), bool)
    mask[1:, 0] = True
    case = _own([*_three(), mask], name="blind-row")
    feeds = {name: torch.from_numpy(array) for name, array in case.feeds().items()}
    feeds["x0"].requires_grad_()
    module(case.model())(feeds)["y0"].sum().backward()
    assert feeds["x0"].grad is not None
    assert bool(feeds["x0"].grad.isfinite().all())


def test_projecting_attention_learns_its_weights_when_they_are_constants() -> None:
    attention = module(_projecting([_X, _WEIGHT, _BIAS], name="").model())
    attention({"x0": torch.from_numpy(_X)})["y0"].square().sum().backward()
    assert sorted(attention.weights) == ["x1", "x2"]
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in attention.weights.values())
