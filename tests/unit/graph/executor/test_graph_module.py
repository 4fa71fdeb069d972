import copy

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from unit.graph.executor.graphs import graph, module, numbers, positive

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.graph_module import GraphModule

_MLP = """network (float[n, 4] x) => (float[n, 2] y) {
    hidden = Gemm <transB = 1> (x, layers__0__weight, layers__0__bias)
    active = Relu(hidden)
    y = Gemm <transB = 1> (active, layers__2__weight, layers__2__bias)
}"""
_NORMED = """network (float[n, 3, h, w] x) => (float[n, 3, h, w] y) {
    y = BatchNormalization <momentum = 0.8> (x, scale, bias, mean, variance)
}"""


def _mlp_constants() -> dict[str, np.ndarray]:
    return {
        "layers__0__weight": numbers(5, 4),
        "layers__0__bias": numbers(5),
        "layers__2__weight": numbers(2, 5),
        "layers__2__bias": numbers(2),
    }


def _norm_constants() -> dict[str, np.ndarray]:
    return {"scale": numbers(3), "bias": numbers(3), "mean": numbers(3), "variance": positive(3)}


def _stored(model: ir.Model) -> dict[str, np.ndarray]:
    found = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        found[name] = np.array(value.const_value.numpy())
    return found


def test_state_dict_loads_into_torchs_own_network_when_names_are_the_same() -> None:
    found = module(_MLP, **_mlp_constants())
    written = torch.nn.Module()
    written.layers = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    written.load_state_dict(found.state_dict())
    x = torch.from_numpy(numbers(3, 4))
    torch.testing.assert_close(found({"x": x})["y"], written.layers(x))
    assert set(found.weights) == set(written.state_dict())


def test_shared_weight_is_one_parameter_when_two_nodes_read_it() -> None:
    found = module(
        """network (int64[n, t] ids) => (float[n, t, 7] y) {
            vectors = Gather(table, ids)
            turned = Transpose <perm = [1, 0]> (table)
            y = MatMul(vectors, turned)
        }""",
        table=numbers(7, 4),
    )
    assert list(found.weights) == ["table"]
    ids = torch.tensor([[1, 2]])
    torch.autograd.backward(found({"ids": ids})["y"].sum())
    table = found.weights["table"].detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((table[ids] @ table.T).sum(), table)
    torch.testing.assert_close(found.weights["table"].grad, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_write_back_stores_what_was_trained_bit_for_bit_when_trained(dtype: type[np.generic]) -> None:
    text = """network (float[n, 4] x) => (float[n, 3] y) {
        wide = Cast <to = 1> (w)
        y = MatMul(x, wide)
    }"""
    model = graph(text, w=numbers(4, 3, dtype=dtype))
    before = _stored(model)["w"]
    found = GraphModule(model, name="small")
    found.write_back(model)
    assert _stored(model)["w"].tobytes() == before.tobytes()
    found({"x": torch.from_numpy(numbers(2, 4))})["y"].square().sum().backward()
    torch.optim.SGD(found.parameters(), lr=0.1).step()
    found.write_back(model)
    trained = found.weights["w"].detach()
    assert _stored(model)["w"].dtype == dtype
    assert _stored(model)["w"].tobytes() == trained.view(torch.uint8).numpy().tobytes()
    assert _stored(model)["w"].tobytes() != before.tobytes()


def test_write_back_keeps_dtype_and_everything_else_when_the_module_was_moved() -> None:
    model = graph(_NORMED, **_norm_constants())
    before = _stored(model)
    GraphModule(model, name="small").double().write_back(model)
    after = _stored(model)
    assert {name: array.dtype for name, array in after.items()} == dict.fromkeys(before, np.dtype(np.float32))
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def test_write_back_reaches_weights_when_they_lie_in_nodes() -> None:
    model = graph(
        """network (float[n, 2] x) => (float[n, 2] y) {
            w = Constant <value = float[2, 2] {1.0, 2.0, 3.0, 4.0}> ()
            y = MatMul(x, w)
        }"""
    )
    found = GraphModule(model, name="small")
    with torch.no_grad():
        found.weights["w"].mul_(2)
    found.write_back(model)
    np.testing.assert_array_equal(_stored(model)["w"], [[2, 4], [6, 8]])


def test_write_back_is_refused_when_the_graph_is_another_one() -> None:
    with pytest.raises(InvalidArgument, match=r"it has no layers\.0\.weight"):
        module(_MLP, **_mlp_constants()).write_back(graph(_NORMED, **_norm_constants()))


def test_batch_normalization_learns_statistics_and_writes_them_back_when_training() -> None:
    model = graph(_NORMED, **_norm_constants())
    before = _stored(model)
    found = GraphModule(model, name="small")
    written = torch.nn.BatchNorm2d(3, momentum=0.2)
    with torch.no_grad():
        for name, tensor in zip(("weight", "bias", "running_mean", "running_var"), before.values(), strict=True):
            getattr(written, name).copy_(torch.from_numpy(tensor))
    x = torch.from_numpy(numbers(4, 3, 5, 5))
    for mode in (True, False, True):
        found.train(mode)
        written.train(mode)
        torch.testing.assert_close(found({"x": x})["y"], written(x))
    found.write_back(model)
    for name, buffer in (("mean", written.running_mean), ("variance", written.running_var)):
        assert buffer is not None
        np.testing.assert_array_equal(_stored(model)[name], found.state_dict()[name])
        np.testing.assert_allclose(_stored(model)[name], buffer, rtol=1e-6)


def test_training_is_refused_when_two_nodes_share_running_statistics() -> None:
    found = module(
        """network (float[n, 3] x) => (float[n, 3] y) {
            h = BatchNormalization(x, scale, zero, zero, variance)
            y = BatchNormalization(h, scale, zero, zero, variance)
        }""",
        scale=numbers(3),
        zero=np.zeros(3, np.float32),
        variance=positive(3),
    )
    x = torch.from_numpy(numbers(4, 3))
    assert found({"x": x})["y"].shape == (4, 3)
    with pytest.raises(InvalidArgument, match="several nodes read the running statistics zero, variance"):
        found.train()({"x": x})


@pytest.mark.parametrize("size", [(1, 4), (7, 4), (0, 4)])
def test_output_follows_the_input_when_its_size_changes(size: tuple[int, int]) -> None:
    found = module(_MLP, **_mlp_constants())
    assert found({"x": torch.zeros(size)})["y"].shape == (size[0], 2)


_CASTING = """network (float[n, 4] x, int64[n] lengths) => (float[n, 3] y) {
    low = Constant <value_float = -1.0> ()
    high = Constant <value_float = 1.0> ()
    limited = Clip(x, low, high)
    counted = Cast <to = 1> (lengths)
    axis = Constant <value_ints = [1]> ()
    column = Unsqueeze(counted, axis)
    shared = Div(limited, column)
    shape = Shape(shared)
    zeros = ConstantOfShape(shape)
    sum = Add(shared, zeros)
    normed = LayerNormalization(sum, gain)
    y = MatMul(normed, w)
}"""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_module_computes_in_another_dtype_when_moved(dtype: torch.dtype) -> None:
    found = module(_CASTING, gain=numbers(4), w=numbers(4, 3))
    feeds = {"x": torch.from_numpy(numbers(2, 4)), "lengths": torch.tensor([2, 3])}
    expected = found(feeds)["y"]
    made = found.to(dtype)(feeds)["y"]
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), expected, rtol=0.05, atol=0.05)
    made.sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == dtype for weight in found.weights.values())


def test_shapes_stay_on_the_host_when_the_module_is_on_a_device() -> None:
    found = module(_CASTING, gain=numbers(4), w=numbers(4, 3)).to("meta")
    feeds = {"x": torch.zeros((2, 4), device="meta"), "lengths": torch.zeros(2, dtype=torch.int64, device="meta")}
    made = found(feeds, values=("shape", "zeros"))
    assert made["y"].device.type == "meta"
    assert made["y"].shape == (2, 3)
    assert made["zeros"].device.type == "meta"
    assert made["shape"].tolist() == [2, 4]


def test_values_and_scales_reach_every_value_when_asked_for() -> None:
    found = module(_MLP, **_mlp_constants())
    x = torch.from_numpy(numbers(3, 4))
    plain = found({"x": x}, values=("hidden", "x", "layers.2.bias"))
    assert list(plain) == ["y", "hidden", "x", "layers.2.bias"]
    weights = found.weights
    torch.testing.assert_close(plain["hidden"], x @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    scale = torch.tensor([1.0, 1, 0, 1, 1], requires_grad=True)
    scaled = found({"x": x}, values=("active",), scales={"active": scale})
    torch.testing.assert_close(scaled["active"], torch.relu(plain["hidden"]) * scale)
    torch.testing.assert_close(scaled["y"], scaled["active"] @ weights["layers.2.weight"].T + weights["layers.2.bias"])
    (gradient,) = torch.autograd.grad(scaled["y"].sum(), scale)
    expected = (torch.relu(plain["hidden"]) * weights["layers.2.weight"].sum(0)).sum(0)
    torch.testing.assert_close(gradient, expected)


def test_copy_has_weights_of_its_own_when_a_module_is_copied() -> None:
    found = module(_MLP, **_mlp_constants())
    x = torch.from_numpy(numbers(3, 4))
    copied = copy.deepcopy(found)
    before = found({"x": x})["y"]
    with torch.no_grad():
        found.weights["layers.0.weight"].zero_()
    torch.testing.assert_close(copied({"x": x})["y"], before)
    assert not torch.equal(found({"x": x})["y"], before)


def test_weights_given_are_used_when_the_module_is_called_as_a_function_of_them() -> None:
    found = module(_MLP, **_mlp_constants())
    x = torch.from_numpy(numbers(3, 4))
    given = {name: torch.zeros_like(weight) for name, weight in found.weights.items()}
    given["layers.2.bias"] = torch.tensor([1.0, 2.0])
    made = torch.func.functional_call(found, given, ({"x": x},))["y"]
    torch.testing.assert_close(made, given["layers.2.bias"].expand(3, 2))


def test_gradients_are_told_by_row_when_they_are_mapped_over_a_batch() -> None:
    found = module(_MLP, **_mlp_constants())
    x = torch.from_numpy(numbers(3, 4))

    def loss(weights: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        made: dict[str, torch.Tensor] = torch.func.functional_call(found, weights, ({"x": row[None]},))
        return made["y"].square().sum()

    weights = {name: weight.detach() for name, weight in found.weights.items()}
    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    (total,) = torch.autograd.grad(found({"x": x})["y"].square().sum(), found.weights["layers.0.weight"])
    torch.testing.assert_close(rows["layers.0.weight"].sum(0), total)


def test_roundings_take_the_place_of_inputs_weights_and_values_and_leave_parameters_as_they_are() -> None:
    found = module(_MLP, **_mlp_constants())
    before = {name: weight.detach().clone() for name, weight in found.weights.items()}
    x = torch.from_numpy(numbers(3, 4))
    weight, bias = found.weights["layers.0.weight"], found.weights["layers.0.bias"]
    made = found(
        {"x": x},
        values=("hidden",),
        roundings={"x": torch.round, "layers.0.weight": torch.ceil, "hidden": torch.floor},
    )
    by_hand = torch.floor(torch.round(x) @ torch.ceil(weight).T + bias)
    torch.testing.assert_close(made["hidden"], by_hand)
    after = torch.nn.functional.linear(by_hand.relu(), found.weights["layers.2.weight"], found.weights["layers.2.bias"])
    torch.testing.assert_close(made["y"], after)
    assert all(torch.equal(found.weights[name], old) for name, old in before.items())


@pytest.mark.parametrize(
    "wrong",
    [{"values": ("nothing",)}, {"scales": {"nothing": torch.ones(1)}}, {"roundings": {"nothing": torch.round}}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_forward_is_refused_when_a_value_is_unknown(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="it has no nothing"):
        module(_MLP, **_mlp_constants())({"x": torch.zeros(1, 4)}, **wrong)


def test_forward_is_refused_when_an_input_is_missing() -> None:
    with pytest.raises(InvalidArgument, match="expected the inputs x; missing: x"):
        module(_MLP, **_mlp_constants())({})


def test_graph_is_refused_when_an_operator_is_unknown() -> None:
    with pytest.raises(InvalidArgument, match=r"small: .* vendor::Fancy \(Fancy y\) has no differentiable kernel"):
        module("network (float[n, 4] x) => (float[n, 4] y) { y = vendor.Fancy(x) }")


def test_graph_is_refused_when_it_is_quantized() -> None:
    text = """network (float[n, 4] x) => (float[n, 3] y) {
        w = DequantizeLinear(whole, scale)
        y = MatMul(x, w)
    }"""
    with pytest.raises(InvalidArgument, match=r"small: no gradients through an integer or quantized graph \(Dequantiz"):
        module(text, whole=np.ones((4, 3), np.int8), scale=np.array(0.1, np.float32))


def test_graph_is_refused_when_a_constant_holds_text() -> None:
    text = """network (float[n] x) => (float[n] y) {
        words = Constant <value_strings = ["a", "b"]> ()
        y = Identity(x)
    }"""
    with pytest.raises(InvalidArgument, match="small: the constant words holds STRING"):
        module(text)


def test_nodes_run_in_order_when_the_file_lists_them_otherwise() -> None:
    found = module("network (float[n] x) => (float[n] y) { y = Relu(h)  h = Neg(x) }")
    assert found({"x": torch.tensor([-1.0, 2.0])})["y"].tolist() == [1.0, 0.0]


def test_functions_of_the_model_are_computed_when_nodes_call_them() -> None:
    found = module(
        """network (float[n, 4] x) => (float[n, 3] y) { y = vendor.Layer(x, w) }
        <domain: "vendor", opset_import: ["": 21]>
        Layer (a, b) => (c) { d = MatMul(a, b)  c = Softmax(d) }""",
        w=numbers(4, 3),
    )
    x = torch.from_numpy(numbers(2, 4))
    torch.testing.assert_close(found({"x": x})["y"], torch.softmax(x @ found.weights["w"], -1))


def test_model_given_is_not_changed_when_a_module_is_made_of_it() -> None:
    model = graph(_NORMED, **_norm_constants())
    before = _stored(model)
    found = GraphModule(model, name="small").train()
    found({"x": torch.from_numpy(numbers(4, 3, 2, 2))})
    with torch.no_grad():
        for weight in found.parameters():
            weight.zero_()
    after = _stored(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(node.version is None for node in model.graph)
