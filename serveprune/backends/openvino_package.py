import importlib
import sys
from typing import Any

from serveprune.errors import MissingExtra


def openvino_package() -> Any:
    """Return the package ``openvino``, imported only when a graph asks for it.

    Raises:
        MissingExtra: It is not installed.
    """
    silence_telemetry()
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingExtra(
            f'backend openvino needs the package openvino ({error}): pip install "serveprune[openvino]", or set '
            "backend: onnxruntime"
        ) from error


def silence_telemetry() -> None:
    """Keep OpenVINO and NNCF from reporting their use over the network, which they do as soon as they are imported.

    Both go without their reporting package where it is absent, and Python takes a module that is None for absent.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
