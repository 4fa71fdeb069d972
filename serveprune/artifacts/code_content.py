"""What a factory's code consists of, found without running any of it."""

import ast
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from serveprune.errors import NotFound

_INSTALLED = {"site-packages", "dist-packages"}


def module_file(module: str) -> Path:
    """Locate a module's file without running any of its code, nor that of the packages around it.

    Raises:
        NotFound: There is no such module in the working folder or among the installed packages.
    """
    spec = _spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise NotFound(
            f"source.torch: expected a module {module} in the working folder or among the installed packages; "
            "start serveprune where `python -c 'import ...'` finds it, or set PYTHONPATH"
        )
    return Path(spec.origin)


def imported_files(module: str) -> dict[str, Path]:
    """Return the modules that importing this one imports in turn: name -> file.

    Read from the import statements, wherever they stand; what is computed at run time is not found. Installed
    packages and the standard library end the search: their versions stand for them.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        spec = None if name in found else _spec(name)
        if spec is None or spec.origin is None or (is_installed(Path(spec.origin)) and name != module):
            continue
        file = Path(spec.origin)
        if file.suffix != ".py" or not file.is_file():
            continue
        found[name] = file
        # Importing a.b.c runs a and a.b before it.
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        package = name if spec.submodule_search_locations else name.rpartition(".")[0]
        names = (*parents, *_imported_names(file, package=package))
        waiting += [each for each in names if all(part.isidentifier() for part in each.split("."))]
    return found


def _imported_names(file: Path, *, package: str) -> Iterator[str]:
    """Yield every name in a file's import statements that may be a module."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # the import will say so, with the line
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = package.rsplit(".", node.level - 1)[0]
                base = f"{around}.{base}".strip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _spec(module: str) -> ModuleSpec | None:
    top, *rest = module.split(".")
    # The build runs as `python -m`, which looks in the working folder first.
    spec = PathFinder.find_spec(top, [str(Path.cwd())])
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        known = sys.modules.get(top)
        spec = known.__spec__ if known is not None else importlib.util.find_spec(top)
    for part in rest:
        locations = spec.submodule_search_locations if spec is not None else None
        # By its last name alone: for a folder without __init__.py the full one would look for imported parents.
        spec = PathFinder.find_spec(part, list(locations)) if locations is not None else None
    return spec


def is_installed(file: Path) -> bool:
    """Tell whether a module's file is of the standard library or of an installed package."""
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update((*site.getsitepackages(), site.getusersitepackages()))
    # Environments may be laid one over the other, by a .pth file or PYTHONPATH.
    return any(file.is_relative_to(folder) for folder in folders) or not _INSTALLED.isdisjoint(file.parts)
