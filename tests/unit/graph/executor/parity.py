"""One node computed by ONNX Runtime and by the executor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from serveprune.graph.executor.graph_module import GraphModule

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """A node, its inputs by slot (None where absent), and which of them are constants of the graph."""

    operator: str
    inputs: Sequence[np.ndarray | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    outputs: tuple[bool, ...] = (True,)
    opset: int = 21
    name: str = ""

    def __str__(self) -> str:
        told = ",".join(f"{key}={value}" for key, value in self.attributes.items() if np.size(value) < 9)
        return f"{self.operator}-{self.opset}-{self.name or told}"

    def model(self) -> onnx.ModelProto:
        """Return the graph; every output has float32 or what ONNX infers."""
        domain, _, operator = self.operator.rpartition("::")
        names = ["" if array is None else f"x{slot}" for slot, array in enumerate(self.inputs)]
        made = [f"y{slot}" if there else "" for slot, there in enumerate(self.outputs)]
        node = helper.make_node(operator, names, made, name="node", domain=domain, **self.attributes)
        graph = helper.make_graph(
            [node],
            "one_node",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for slot, (name, array) in enumerate(zip(names, self.inputs, strict=True))
                if array is not None and slot not in self.constants
            ],
            [helper.make_empty_tensor_value_info(name) for name in made if name],
            [
                numpy_helper.from_array(array, names[slot])
                for slot, array in enumerate(self.inputs)
                if array is not None and slot in self.constants
            ],
        )
        imports = [helper.make_opsetid("", self.opset)]
        if domain:
            imports.append(helper.make_opsetid(domain, 1))
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def feeds(self) -> dict[str, np.ndarray]:
        """Return the inputs that are not constants."""
        return {
            f"x{slot}": array
            for slot, array in enumerate(self.inputs)
            if array is not None and slot not in self.constants
        }


def answers(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    """Return what ONNX Runtime computes, without rewriting the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(answer) for answer in session.run(None, dict(feeds))]


def module(model: onnx.ModelProto) -> GraphModule:
    """Return the graph as a module in evaluation mode."""
    return GraphModule(ir.from_proto(model), name="one-node").eval()


def computed(model: onnx.ModelProto, feeds: Arrays) -> dict[str, Tensor]:
    """Return what the executor computes."""
    with torch.no_grad():
        made: dict[str, Tensor] = module(model)(
            {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        )
    return made


def assert_parity(case: Case, *, tolerance: float = 1e-5) -> None:
    """Compare shapes, dtypes and numbers of all outputs."""
    model, feeds = case.model(), case.feeds()
    expected = answers(model, feeds)
    for want, (name, got) in zip(expected, computed(model, feeds).items(), strict=True):
        have = got.numpy()
        assert have.shape == want.shape, f"{name}: {have.shape} instead of {want.shape}"
        assert have.dtype == want.dtype, f"{name}: {have.dtype} instead of {want.dtype}"
        if want.size:
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=tolerance, err_msg=name)


def assert_gradients(case: Case) -> None:
    """Compare the gradients of floating inputs, in float64, with differences of the outputs."""
    graph = module(case.model()).double()
    fixed = {name: torch.from_numpy(array) for name, array in case.feeds().items() if array.dtype.kind != "f"}
    learned = {name: torch.from_numpy(array) for name, array in case.feeds().items() if array.dtype.kind == "f"}

    def outputs(*given: Tensor) -> tuple[Tensor, ...]:
        made = graph({**fixed, **dict(zip(learned, given, strict=True))})
        return tuple(value for value in made.values() if value.is_floating_point())

    assert torch.autograd.gradcheck(outputs, tuple(value.double().requires_grad_() for value in learned.values()))
