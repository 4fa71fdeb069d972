"""The same groups as torch-pruning finds on the torch side, for networks that both understand."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from unit.compression.pruning.networks import read

from serveprune.graph.simplification import simplify

Groups = set[tuple[int, frozenset[tuple[str, int]]]]


class Residual(nn.Module):
    """BatchNorm, a residual sum, a depthwise layer, two branches joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.widen = nn.Conv2d(8, 12, 3, padding=1)
        self.narrow = nn.Conv2d(12, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.left = nn.Conv2d(8, 6, 1)
        self.right = nn.Conv2d(8, 5, 1)
        self.head = nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.depthwise(x + self.narrow(torch.relu(self.widen(x))))
        x = torch.cat([self.left(x), torch.sigmoid(self.right(x))], 1)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Decoder(nn.Module):
    """Down, up by a transposed convolution, a skip connection that is joined, a gate, channels flattened with space."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3, padding=1)
        self.down = nn.Conv2d(10, 14, 2, stride=2)
        self.up = nn.ConvTranspose2d(14, 9, 2, stride=2)
        self.mix = nn.Conv2d(19, 7, 1)
        self.squeeze = nn.Conv2d(7, 4, 1)
        self.excite = nn.Conv2d(4, 7, 1)
        self.hidden = nn.Linear(7 * 16, 13)
        self.head = nn.Linear(13, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        up = self.up(nn.functional.gelu(self.down(first)))
        x = nn.functional.max_pool2d(self.mix(torch.cat([first, up], 1)), 2)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        result: Tensor = self.head(nn.functional.silu(self.hidden(x.flatten(1))))
        return result


def torch_groups(network: nn.Module, example: Tensor) -> Groups:
    """Return width and weight axes of torch-pruning's groups, without its nodes that hold no weights."""
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=example)
    names = {module: name for name, module in network.named_modules()}
    found = set()
    for group in graph.get_all_groups(ignored_layers=[network.head]):
        slices = set()
        for dependency, _ in group:
            module = dependency.target.module
            if module in names:
                made = dependency.handler.__name__ == "prune_out_channels"
                transposed = isinstance(module, nn.ConvTranspose2d)
                slices.add((f"{names[module]}.weight", int(made == transposed)))
        found.add((len(group[0].idxs), frozenset(slices)))
    return found


@pytest.mark.filterwarnings("ignore")  # of torch's exporter and of torch-pruning, about their own insides
@pytest.mark.parametrize("network", [Residual(), Decoder()], ids=["residual", "decoder"])
def test_groups_are_those_of_torch_pruning_when_both_understand(network: nn.Module, tmp_path: Path) -> None:
    network.eval()
    example = torch.randn(2, 3, 8, 8)
    program = torch.onnx.export(
        network,
        (example,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    simplify(program.model)
    ir.save(program.model, tmp_path / "network.onnx")
    graph = read(tmp_path / "network.onnx", workspace=tmp_path)
    weights = set(dict(network.named_parameters()))
    ours = {
        (
            group.width,
            frozenset(
                (piece.name, piece.axis) for piece in group.slices if piece.name in weights and "bias" not in piece.name
            ),
        )
        for group in graph.groups
    }
    assert ours == torch_groups(network, example)
