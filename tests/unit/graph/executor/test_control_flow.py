from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from unit.graph.executor.parity import answers, computed, module

_FLOAT, _BOOL, _INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
_WEIGHT = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32) * 0.5
_X = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)


def _model(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[int]]], outputs: list[str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "flow",
        [helper.make_tensor_value_info(name, *of) for name, of in inputs.items()],
        [helper.make_tensor_value_info(name, _FLOAT, None) for name in outputs],
        [numpy_helper.from_array(_WEIGHT, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _body(nodes: list[onnx.NodeProto], inputs: dict[str, int], outputs: dict[str, int]) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        "body",
        # What a loop counts and asks are scalars, which ONNX Runtime wants to be told.
        [helper.make_tensor_value_info(name, kind, None if kind == _FLOAT else []) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
    )


def _loop(*, limit: str = "limit", condition: str = "") -> onnx.ModelProto:
    """``x`` times a weight from outside, again and again, until its sum is below a bound; all steps are stacked."""
    body = _body(
        [
            helper.make_node("MatMul", ["x_in", "weight"], ["x_out"]),
            helper.make_node("ReduceSum", ["x_out"], ["sum"], keepdims=0),
            helper.make_node("Less", ["sum", "bound"], ["goes"]),
            helper.make_node("Identity", ["x_out"], ["step"]),
        ],
        {"index": _INT, "goes_in": _BOOL, "x_in": _FLOAT},
        {"goes": _BOOL, "x_out": _FLOAT, "step": _FLOAT},
    )
    return _model(
        [helper.make_node("Loop", [limit, condition, "x"], ["last", "steps"], body=body)],
        {"x": (_FLOAT, [2, 3]), "bound": (_FLOAT, []), "limit": (_INT, []), "go": (_BOOL, [])},
        ["last", "steps"],
    )


def _scan(**attributes: Any) -> onnx.ModelProto:
    body = _body(
        [
            helper.make_node("MatMul", ["state", "weight"], ["turned"]),
            helper.make_node("Add", ["turned", "item"], ["next"]),
            helper.make_node("Tanh", ["next"], ["made"]),
        ],
        {"state": _FLOAT, "item": _FLOAT},
        {"next": _FLOAT, "made": _FLOAT},
    )
    return _model(
        [helper.make_node("Scan", ["x", "items"], ["last", "made"], body=body, num_scan_inputs=1, **attributes)],
        {"x": (_FLOAT, [2, 3]), "items": (_FLOAT, [2, 4, 3] if attributes else [4, 2, 3])},
        ["last", "made"],
    )


def _assert_same(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    for want, got in zip(answers(model, feeds), computed(model, feeds).values(), strict=True):
        assert tuple(got.shape) == want.shape
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5)


@pytest.mark.parametrize(("limit", "bound"), [(5, 1e9), (100, -1e9), (1, 0.0)])
def test_loop_equals_onnx_runtime_when_it_ends_by_count_or_condition(limit: int, bound: float) -> None:
    feeds = {"x": _X, "bound": np.array(bound, np.float32), "limit": np.array(limit), "go": np.array(True)}
    _assert_same(_loop(), feeds)
    _assert_same(_loop(condition="go"), feeds)


def test_loop_returns_what_it_was_given_when_it_never_runs() -> None:
    feeds = {"x": _X, "bound": np.array(0, np.float32), "limit": np.array(3), "go": np.array(False)}
    np.testing.assert_array_equal(computed(_loop(condition="go"), feeds)["last"].numpy(), _X)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scan_input_axes": [1], "scan_input_directions": [1], "scan_output_axes": [2], "scan_output_directions": [1]},
    ],
)
def test_scan_equals_onnx_runtime_when_it_goes_along_an_axis(attributes: dict[str, list[int]]) -> None:
    shape = (2, 4, 3) if attributes else (4, 2, 3)
    items = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    _assert_same(_scan(**attributes), {"x": _X, "items": items})


@pytest.mark.parametrize("taken", [True, False])
def test_branch_equals_onnx_runtime_when_it_reads_weights_from_outside(taken: bool) -> None:
    branches: dict[str, Any] = {
        name: _body([helper.make_node(operator, ["x", "weight"], [name])], {}, {name: _FLOAT})
        for name, operator in (("then_branch", "MatMul"), ("else_branch", "Gemm"))
    }
    model = _model(
        [helper.make_node("If", ["go"], ["y"], **branches)], {"x": (_FLOAT, [2, 3]), "go": (_BOOL, [])}, ["y"]
    )
    _assert_same(model, {"x": _X, "go": np.array(taken)})


def test_gradients_flow_through_the_body_when_a_loop_learns() -> None:
    loop = module(_loop()).double()
    feeds = {"bound": torch.tensor(1e9).double(), "limit": torch.tensor(3), "go": torch.tensor(True)}
    data, weight = torch.from_numpy(_X).double(), loop.weights["weight"]

    def run(x: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.func.functional_call(loop, {"weight": given}, ({"x": x, **feeds},))["steps"]
        return made

    given = weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(run, (data.requires_grad_(), given))
    torch.testing.assert_close(run(data, given)[-1], data @ given @ given @ given)


def test_gradients_flow_through_the_body_when_a_scan_learns() -> None:
    scan = module(_scan()).double()
    items = torch.ones(4, 2, 3).double().requires_grad_()

    def run(given: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
        feeds = {"x": torch.from_numpy(_X).double(), "items": along}
        made: torch.Tensor = torch.func.functional_call(scan, {"weight": given}, (feeds,))["made"]
        return made

    assert torch.autograd.gradcheck(run, (scan.weights["weight"].detach().requires_grad_(), items))
