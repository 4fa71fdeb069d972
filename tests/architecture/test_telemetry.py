import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOAD = """\
import sys
from pathlib import Path
from serveprune.backends.onnx_runtime import OnnxRuntimeBackend
OnnxRuntimeBackend().load(Path(sys.argv[1])).close()
"""


@pytest.mark.parametrize("first", ["", "import serveprune.compression.quantization.quantizer\n"])
def test_onnx_runtime_reports_nothing(first: str, tmp_path: Path) -> None:
    # Where it reports, it begins a file for its session as soon as it is imported.
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", first + LOAD, str(ROOT / "serveprune" / "demo" / "fashion.onnx")]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
