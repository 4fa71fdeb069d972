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
from serveprune.graph.executor.operator import Rounding, Run
from serveprune.graph.executor.program import Program
from serveprune.graph.executor.state_names import StateNames
from serveprune.graph.node import label, operator
from serveprune.graph.quantized import quantized_node


class GraphModule(torch.nn.Module):
    """Computes the nodes of a graph with torch, so that gradients flow through it.

    Weights are parameters and other arrays are buffers, in the state dict under their names in the graph; `role_of`
    says which is which. Training mode is torch's: BatchNormalization uses and updates the statistics of the batch,
    Dropout drops.
    """

    def __init__(self, model: ir.Model, *, name: str) -> None:
        """Make the kernels of all nodes, and copies of all constants.

        Args:
            model: The graph; not changed, except that its nodes are brought into an order in which they can run.
            name: Of the model, for messages.

        Raises:
            InvalidArgument: The graph is quantized, or has an operator that the executor lacks.
        """
        super().__init__()
        model = _normalized(model, name=name)
        graph = model.graph
        self._names = StateNames(self)
        self._settings: dict[str, Tensor] = {}
        self._roles: dict[str, Role] = {}
        for constant, value in graph.initializers.items():
            assert value.const_value is not None
            self._keep(constant, _tensor(value.const_value, name=name), role_of(value))
        self._shared = [
            key
            for key, role in self._roles.items()
            if role is Role.STATISTIC and len(graph.initializers[key].uses()) > 1
        ]
        self._program = Program(graph, name=name)
        self.inputs = tuple(each for each in self._program.inputs if each not in graph.initializers)
        """Names of what `forward` has to be given."""
        self.outputs = self._program.outputs
        """Names of the graph's outputs."""
        self._known = self._program.made.union(graph.initializers, self.inputs)
        self._dtypes = {key: each.dtype for key, each in self._names.tensors().items() if each.is_floating_point()}

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """Parameters by their names in the graph."""
        tensors = self._names.tensors()
        return {name: found for name, found in tensors.items() if isinstance(found, torch.nn.Parameter)}

    def forward(
        self,
        feeds: Mapping[str, Tensor],
        *,
        values: Sequence[str] = (),
        scales: Mapping[str, Tensor] | None = None,
        roundings: Mapping[str, Rounding] | None = None,
    ) -> dict[str, Tensor]:
        """Return the outputs by name, and the values asked for.

        Args:
            feeds: Every input, with the dtype and rank that the graph declares, on the module's device. In a module
                that was moved to another dtype, floating ones follow.
            values: Names of further values to return.
            scales: Factors by name of a value, which is multiplied with them as soon as it is known: gradients with
                respect to a factor of 1 say what a channel is worth.
            roundings: Functions by name of an input, a constant or a value, whose result takes its place as soon as it
                is known; parameters stay what they are.

        Raises:
            InvalidArgument: An input is missing, a name is no value of the graph, or in training mode, running
                statistics are read by several nodes.
        """
        if self.training and self._shared:
            raise InvalidArgument(
                f"several nodes read the running statistics {', '.join(self._shared)}, which training would mix up; "
                "prepare the graph first, so that each has its own"
            )
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InvalidArgument(f"expected the inputs {', '.join(self.inputs)}; missing: {', '.join(missing)}")
        unknown = [each for each in values if each not in self._known]
        unknown += [each for each in scales or () if each not in self._program.made]
        unknown += [each for each in roundings or () if each not in self._known]
        if unknown:
            raise InvalidArgument(f"expected names of values that the graph computes; it has no {', '.join(unknown)}")
        tensors = self._names.tensors()
        run = self._run(tensors)
        if run.moved_to is not None:
            feeds = {
                key: value.to(run.moved_to) if value.is_floating_point() else value for key, value in feeds.items()
            }
        known = {**self._settings, **tensors, **feeds}
        known |= {name: rounding(known[name]) for name, rounding in (roundings or {}).items() if name in known}
        self._program.run(known, run, keep=frozenset(values), scales=scales, roundings=roundings)
        return {name: known[name] for name in dict.fromkeys((*self.outputs, *values))}

    def write_back(self, model: ir.Model) -> None:
        """Set the constants of a graph to the weights and statistics as they are now, bit for bit.

        Args:
            model: The graph this was made of, or one whose constants have the same names; each keeps its dtype. Where
                weights lie in nodes or functions, these are dissolved as they were to make this module.

        Raises:
            InvalidArgument: The graph lacks a weight.
        """
        tensors = {
            name: tensor for name, tensor in self._names.tensors().items() if self._roles[name] is not Role.BUFFER
        }
        if not tensors.keys() <= model.graph.initializers.keys():
            _dissolve(model)
        missing = [name for name in tensors if name not in model.graph.initializers]
        if missing:
            raise InvalidArgument(f"expected a graph with the weights of this module; it has no {', '.join(missing)}")
        for name, tensor in tensors.items():
            value = model.graph.initializers[name]
            assert value.const_value is not None
            dtype = value.const_value.dtype
            array = tensor.detach().cpu().to(tensor_adapters.to_torch_dtype(dtype)).contiguous()
            value.const_value = ir.tensor(tensor_adapters.TorchTensor(array).numpy().copy(), dtype=dtype, name=name)

    def _run(self, tensors: Mapping[str, Tensor]) -> Run:
        floats = {key: tensors[key] for key in self._dtypes}
        first = next(iter(floats.values()), None)
        if first is None:
            return Run(training=self.training, device=torch.device("cpu"))
        moved = any(each.dtype != self._dtypes[key] for key, each in floats.items())
        return Run(training=self.training, device=first.device, moved_to=first.dtype if moved else None)

    def _keep(self, name: str, tensor: Tensor, role: Role) -> None:
        self._roles[name] = role
        if role is Role.SETTING:
            self._settings[name] = tensor
        else:
            self._names.register(name, torch.nn.Parameter(tensor) if role is Role.WEIGHT else tensor)


def _normalized(model: ir.Model, *, name: str) -> ir.Model:
    """Return a copy without functions, whose constants all lie in the outer graph, and whose nodes know their opset."""
    quantized = quantized_node(model)
    if quantized is not None:
        raise InvalidArgument(
            f"{name}: no gradients through an integer or quantized graph ({operator(quantized)}, {label(quantized)}); "
            "start from the float model, and put passes that learn, such as `distill`, before `quantize`"
        )
    passes.TopologicalSortPass()(model)  # ONNX Runtime also takes nodes in any order; only ordered ones can be copied
    model = model.clone()
    _dissolve(model)
    versions = {"" if domain == "ai.onnx" else domain: version for domain, version in model.opset_imports.items()}
    for graph in model.graphs():
        for node in graph:
            node.version = node.version or versions.get("" if node.domain == "ai.onnx" else node.domain)
    return model


def _dissolve(model: ir.Model) -> None:
    """Bring all constants to the outer graph."""
    passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)


def _tensor(constant: ir.TensorProtocol, *, name: str) -> Tensor:
    try:
        dtype = tensor_adapters.to_torch_dtype(constant.dtype)
    except TypeError as error:
        raise InvalidArgument(
            f"{name}: the constant {constant.name} holds {constant.dtype.name}, which torch has no dtype for; "
            "leave out the pass that learns, or export the model without it"
        ) from error
    # Not ascontiguousarray, which turns a scalar into a list of one.
    array = np.asarray(constant.numpy(), order="C")
    if array.dtype.kind in "biufc":
        return torch.from_numpy(array.copy())
    # numpy knows bfloat16 and its like only by another package, torch takes their bits.
    return torch.from_numpy(array.view(f"u{array.itemsize}").copy()).view(dtype)
