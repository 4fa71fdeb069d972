import pytest
import torch

from serveprune.graph.executor.state_names import StateNames


@pytest.mark.parametrize(
    "names",
    [
        ["blocks.0.weight", "blocks.0.bias", "blocks.10.weight"],
        ["/model/layer.0/MatMul:0", "onnx::MatMul_17"],
        ["weight", "weight.scale", "weight.scale.more"],
        ["weight.scale", "weight"],
        ["forward", "train", "parameters.weight", "_modules", "training"],
        ["a..b", ".a", "a.", ".", "a__b", "a_"],
        ["a.b", "a_b", "a.b.c", "a_b_c"],
    ],
    ids=str,
)
def test_tensors_are_found_by_their_names_when_torch_cannot_take_them(names: list[str]) -> None:
    module = torch.nn.Module()
    state = StateNames(module)
    for number, name in enumerate(names):
        tensor = torch.tensor(float(number))
        state.register(name, torch.nn.Parameter(tensor) if number % 2 else tensor)
    assert {name: int(tensor) for name, tensor in state.tensors().items()} == {
        name: number for number, name in enumerate(names)
    }
    assert len(module.state_dict()) == len(names)


def test_keys_of_the_state_dict_are_the_names_when_torch_can_take_them() -> None:
    module = torch.nn.Module()
    state = StateNames(module)
    names = ["blocks.0.first.weight", "blocks.0.first.bias", "head", "onnx::MatMul_17", "/model/Add:0"]
    for name in names:
        state.register(name, torch.nn.Parameter(torch.zeros(2)))
    assert list(module.state_dict()) == sorted(names, key=list(module.state_dict()).index)
    assert set(module.state_dict()) == set(names)
