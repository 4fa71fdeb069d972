"""Every operator the executor can compute and differentiate, by its name in the graph.

Operators of other domains than ONNX's own are keyed ``domain::Operator``, as in the coupling table.
"""

from collections.abc import Mapping
from types import MappingProxyType

from serveprune.graph.executor.operator import Operator
from serveprune.graph.executor.operators import (
    activation,
    attention,
    convolution,
    elementwise,
    normalization,
    pooling,
    product,
    recurrent,
    reduction,
    resampling,
    reshaping,
    rotary,
    selection,
    shaping,
)

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        **elementwise.OPERATORS,
        **activation.OPERATORS,
        **reduction.OPERATORS,
        **product.OPERATORS,
        **convolution.OPERATORS,
        **pooling.OPERATORS,
        **normalization.OPERATORS,
        **shaping.OPERATORS,
        **resampling.OPERATORS,
        **reshaping.OPERATORS,
        **selection.OPERATORS,
        **rotary.OPERATORS,
        **attention.OPERATORS,
        **recurrent.OPERATORS,
    }
)
