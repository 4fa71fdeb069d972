"""An ONNX graph as a torch module: what is trained is what is served."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from onnx_ir.passes import common as passes
from torch import Tensor

from serveprune.errors import InvalidArgument
from serveprune.graph.executor.constants import Role, role_of
from serveprune.graph.executor.operator import Run
from serveprune.graph.executor.program import Program
from serveprune.graph.executor.state_names import StateNames


class GraphModule(torch.nn.Module):
    """Computes the nodes of a graph with torch, so that gradients flow through it.

    Weights are parameters and other arrays are buffers, in the state dict under their names in the graph; `role_of`
    says which is which. Training mode is torch's: BatchNormalization uses and updates the statistics of the batch,
    Dropout drops.
    """

    def __init__(self, model: ir.Model, *, name: str) -> None:
        """Make the kernels of all nodes, and copies of all constants.

        Args:
            model: The graph; not changed.
            name: Of the model, for messages.

        Raises:
            InvalidArgument: The graph is quantized, or has an operator that the executor lacks.
        """
        super().__init__()
        model = model.clone()
        passes.InlinePass()(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.LiftSubgraphInitializersToMainGraphPass()(model)
        graph = model.graph
        self._names = StateNames(self)
        self._settings: dict[str, Tensor] = {}
        self._roles: dict[str, Role] = {}
        for constant, value in graph.initializers.items():
            assert value.const_value is not None
            self._keep(constant, _tensor(value.const_value), role_of(value))
        self._program = Program(graph, name=name)
        self.inputs = tuple(each for each in self._program.inputs if each not in graph.initializers)
        """Names of what `forward` has to be given."""
        self.outputs = self._program.outputs
        """Names of the graph's outputs."""
        self._declared = next((each.dtype for each in self.parameters()), None)

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Parameters by their names in the graph."""
        tensors = self._names.tensors()
        return {name: found for name, found in tensors.items() if isinstance(found, torch.nn.Parameter)}

    def forward(
        self, feeds: Mapping[str, Tensor], *, values: Sequence[str] = (), scales: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the outputs by name, and the values asked for.

        Args:
            feeds: Every input, with the dtype and rank that the graph declares, on the module's device.
            values: Names of further values to return.
            scales: Factors by name of a value, which is multiplied with them as soon as it is known: gradients with
                respect to a factor of 1 say what a channel is worth.

        Raises:
            InvalidArgument: An input is missing.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InvalidArgument(f"expected the inputs {', '.join(self.inputs)}; missing: {', '.join(missing)}")
        first = next(self.parameters(), None)
        run = Run(
            training=self.training,
            device=torch.device("cpu") if first is None else first.device,
            moved_to=None if first is None or first.dtype == self._declared else first.dtype,
        )
        known = {**self._settings, **self._names.tensors(), **feeds}
        self._program.run(known, run, keep=frozenset(values), scales=scales)
        return {name: known[name] for name in dict.fromkeys((*self.outputs, *values))}

    def write_back(self, model: ir.Model) -> None:
        """Set the constants of a graph to the weights and statistics as they are now, bit for bit.

        Args:
            model: The graph this was made of, or one whose constants have the same names; each keeps its dtype.
        """
        for name, tensor in self._names.tensors().items():
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None or self._roles[name] is Role.BUFFER:
                continue
            dtype = value.const_value.dtype
            array = tensor.detach().cpu().to(tensor_adapters.to_torch_dtype(dtype)).contiguous()
            value.const_value = ir.tensor(tensor_adapters.TorchTensor(array).numpy().copy(), dtype=dtype, name=name)

    def _keep(self, name: str, tensor: Tensor, role: Role) -> None:
        self._roles[name] = role
        if role is Role.SETTING:
            self._settings[name] = tensor
        else:
            self._names.register(name, torch.nn.Parameter(tensor) if role is Role.WEIGHT else tensor)


def _tensor(constant: ir.TensorProtocol) -> Tensor:
    dtype = tensor_adapters.to_torch_dtype(constant.dtype)
    array = np.ascontiguousarray(constant.numpy())
    if array.dtype.kind in "biufc":
        return torch.from_numpy(array.copy())
    # numpy knows bfloat16 and its like only by another package, torch takes their bits.
    return torch.from_numpy(array.view(f"u{array.itemsize}").copy()).view(dtype)
