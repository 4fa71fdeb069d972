"""Makes an interpreter believe that the compressing half's packages are not installed.

On PYTHONPATH it is imported before anything else. Not only do imports fail: `find_spec` and
`importlib.metadata` find nothing either, as where the packages are really absent.
"""

import sys
from importlib.metadata import Distribution, DistributionFinder
from typing import Any

ABSENT = frozenset({"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors"})


class WithoutAbsentPackages:
    """An import finder that finds what another one finds, except for these packages."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in ABSENT else self._finder.find_spec(name, path, target)

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> list[Distribution]:
        find = getattr(self._finder, "find_distributions", None)
        found = find(context or DistributionFinder.Context()) if find else ()
        return [one for one in found if (one.metadata["Name"] or "").replace("-", "_") not in ABSENT]

    def invalidate_caches(self) -> None:
        if hasattr(self._finder, "invalidate_caches"):
            self._finder.invalidate_caches()


sys.meta_path[:] = [WithoutAbsentPackages(finder) for finder in sys.meta_path]
