"""The table of backends, by the name that a config gives them."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

from serveprune.backends.protocol import Backend
from serveprune.errors import Internal

ONNX_RUNTIME = "onnxruntime"
"""The reference: it runs every graph, and dense on it is what tiers are compared with."""

OPENVINO = "openvino"

_TABLE: Mapping[str, str] = MappingProxyType(
    {
        ONNX_RUNTIME: "serveprune.backends.onnx_runtime:OnnxRuntimeBackend",
        OPENVINO: "serveprune.backends.openvino:OpenVinoBackend",
    }
)


def load_backend(name: str, *, executors: int = 1) -> Backend:
    """Return the backend of this name, importing its runtime only now.

    Args:
        name: As in ``models.<name>.backend``, but not ``auto``.
        executors: Runs that a graph must bear at the same time.

    Raises:
        MissingExtra: Its runtime is not installed.
    """
    if name not in _TABLE:
        raise Internal(f"no backend is named {name}; known: {', '.join(_TABLE)}")
    module, _, attribute = _TABLE[name].partition(":")
    make = cast(Callable[..., Backend], getattr(importlib.import_module(module), attribute))
    return make(executors=executors)
