"""Every operator the executor can compute and differentiate, by its name in the graph.

Operators of other domains than ONNX's own are keyed ``domain::Operator``, as in the coupling table.
"""

from collections.abc import Mapping
from types import MappingProxyType

from serveprune.graph.executor.operator import Operator
from serveprune.graph.executor.operators import elementwise

OPERATORS: Mapping[str, Operator] = MappingProxyType({**elementwise.OPERATORS})
