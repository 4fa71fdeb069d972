import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from serveprune import __version__

_PACKAGES = (
    *("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "pillow", "safetensors", "tokenizers", "torch"),
    "transformers",
)
"""Packages whose version, besides our own, decides what a build writes."""

_CPU_FEATURES = (
    # x86: width of vectors, integer dot products, bfloat16, tile matrix units.
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx_ne_convert"),
    *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vbmi"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    # ARM: the same things under their names there.
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2"),
)
"""The kernel's names of instruction sets for which inference runtimes have kernels of their own."""


OPTIONAL_PACKAGES = frozenset({"nncf", "openvino"})
"""Packages that decide something only where a tier is made or measured with them."""


def environment(extra_packages: Iterable[str] = ()) -> dict[str, str]:
    """Return what besides the recipe decides an artifact's bytes: package versions and CPU features.

    Nothing is imported, so this is the same in a process that could not import torch.

    Args:
        extra_packages: Those of `OPTIONAL_PACKAGES` that decide something too.
    """
    return {
        "serveprune": __version__,
        **{name: _version(name) for name in (*_PACKAGES, *sorted(extra_packages))},
        "cpu": cpu_identity(platform.machine(), _first_processor(Path("/proc/cpuinfo"))),
    }


def is_this_environment(recorded: Mapping[str, str]) -> bool:
    """Tell whether what was recorded of an artifact's environment is true of this one."""
    return dict(recorded) == environment(OPTIONAL_PACKAGES.intersection(recorded))


def cpu_identity(architecture: str, processor: str) -> str:
    """Return the architecture and the sorted features that decide which kernels run.

    Args:
        architecture: As ``uname -m`` says it.
        processor: One processor's section of ``/proc/cpuinfo``.
    """
    features: set[str] = set()
    for line in processor.splitlines():
        label, _, words = line.partition(":")
        if label.strip().lower() in ("flags", "features"):
            features.update(words.split())
    return " ".join([architecture, *sorted(features.intersection(_CPU_FEATURES))])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _first_processor(cpuinfo: Path) -> str:
    # Sections are ended by an empty line; a large machine has hundreds of equal ones.
    lines: list[str] = []
    with cpuinfo.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                break
            lines.append(line)
    return "".join(lines)
