import subprocess
import sys

import pytest

from serveprune.backends.openvino import OpenVinoBackend
from serveprune.backends.selection import load_backend
from serveprune.errors import Internal


def test_backend_is_found_by_its_name() -> None:
    assert [load_backend(name).name for name in ("onnxruntime", "openvino")] == ["onnxruntime", "openvino"]
    assert isinstance(load_backend("openvino", executors=3), OpenVinoBackend)


def test_unknown_backend_is_a_defect() -> None:
    with pytest.raises(Internal, match="no backend is named auto; known: onnxruntime, openvino"):
        load_backend("auto")


def test_openvino_is_not_imported_until_a_graph_asks_for_it() -> None:
    script = (
        "import sys, serveprune.server, serveprune.backends.openvino, serveprune.backends.selection as selection\n"
        "selection.load_backend('onnxruntime')\n"
        "assert 'openvino' not in sys.modules\n"
        "selection.load_backend('openvino')\n"
        "assert 'openvino' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
