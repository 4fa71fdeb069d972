import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime

import serveprune
from serveprune import __version__
from serveprune.artifacts.environment import cpu_identity, environment, is_this_environment

XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 sse4_1 avx512f amx_int8 nonsense\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm crc32\n"


def test_environment_names_installed_versions() -> None:
    found = environment()
    assert found["onnxruntime"] == onnxruntime.__version__
    # Samples go through these before a graph sees them, and weights are read with the last.
    assert found["numpy"] == np.__version__
    assert set(found) >= {"pillow", "tokenizers", "safetensors"}
    assert found["serveprune"] == __version__


def test_optional_packages_are_named_only_where_they_are_asked_for() -> None:
    assert set(environment(["openvino"])) - set(environment()) == {"openvino"}
    assert environment(["openvino"])["openvino"] == metadata.version("openvino")


def test_recorded_environment_is_this_one_with_the_optional_packages_that_it_names() -> None:
    assert is_this_environment(environment())
    assert is_this_environment(environment(["openvino", "nncf"]))
    assert not is_this_environment(environment(["openvino"]) | {"openvino": "2020.1"})
    assert not is_this_environment(environment() | {"numpy": "1.0"})


def test_environment_agrees_with_numpy_on_cpu_features() -> None:
    # numpy asks the processor itself, the environment asks the kernel.
    features = environment()["cpu"].split()
    known = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    for name, numpy_name in (("avx2", "AVX2"), ("avx512f", "AVX512F"), ("asimddp", "ASIMDDP")):
        assert (name in features) == known.get(numpy_name, False)


def test_environment_imports_nothing_heavy() -> None:
    script = (
        "import sys; from serveprune.artifacts.environment import environment; environment();"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'transformers') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_environment_says_absent_when_a_package_is_not_installed(tmp_path: Path) -> None:
    # Without its site-packages the interpreter has none of them.
    shutil.copytree(Path(serveprune.__file__).parent, tmp_path / "serveprune", ignore=shutil.ignore_patterns("*.pyc"))
    script = "from serveprune.artifacts.environment import environment; print(environment()['torch'])"
    told = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "absent"


def test_cpu_identity_keeps_features_that_decide_kernels() -> None:
    assert cpu_identity("x86_64", XEON) == "x86_64 amx_int8 avx2 avx512f sse4_1"
    assert cpu_identity("aarch64", GRAVITON) == "aarch64 asimd asimddp i8mm"
    assert cpu_identity("riscv64", "") == "riscv64"
