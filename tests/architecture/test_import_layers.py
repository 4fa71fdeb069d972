"""The import ladder of pyproject.toml, and what the serving half must never load."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPRESSING_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors")


def test_imports_point_down_the_ladder() -> None:
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter is not None, "import-linter is not installed; `make test` installs it"

    checked = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("module", ["serveprune.server", "serveprune.cli.app", "serveprune.compression.child"])
def test_serving_path_loads_nothing_of_the_compressing_half(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {COMPRESSING_PACKAGES} if name in sys.modules))"

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)

    assert finished.stdout.split() == []


@pytest.mark.parametrize("module", ["serveprune.server", "serveprune.cli.app", "serveprune.cli.serving_process"])
def test_nothing_of_opentelemetry_is_loaded_before_traces_are_wanted(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in sys.modules if name.startswith('opentelemetry')))"

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)

    assert finished.stdout.split() == []


def test_packages_hold_no_code_in_their_init() -> None:
    for init in (ROOT / "serveprune").rglob("__init__.py"):
        if init.parent.name != "serveprune":
            assert init.read_text(encoding="utf-8").strip() == "", init
