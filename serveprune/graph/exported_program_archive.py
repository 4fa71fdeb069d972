"""What a `.pt2` may hold, checked before torch opens it.

``torch.export.load`` unpickles without ``weights_only`` in three places, loads compiled libraries, and
evaluates strings of the program: symbolic expressions through sympy, guards through ``exec``, operators
by attribute lookup. Programs of plain tensors and ATen operators need none of that, so everything else
is refused here, read with the same reader that torch uses.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.export.pt2_archive import PT2ArchiveReader

from serveprune.errors import InvalidArgument

_ALLOWED_FOLDERS = ("data/weights/", "data/constants/", "data/sample_inputs/", "extra/", ".data/")
_ALLOWED_FILES = frozenset(("models/model.json", "archive_format", "archive_version", "byteorder", "version"))
_CONSTANTS_FILE = "data/constants/model_constants_config.json"
_TENSOR_PREFIX = "tensor_"
_OPERATORS = (
    "add sub mul truediv floordiv mod pow neg pos abs and_ or_ xor not_ eq ne lt le gt ge getitem lshift rshift"
)
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|prim|higher_order|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.(sym_\w+|_sym_\w+)"
    rf"|_operator\.({'|'.join(_OPERATORS.split())})"
    r"|math\.\w+"
)
_READS_FILES = ("torch.ops.aten.from_file",)
_SYMPY_CONSTRUCTOR = re.compile(r"[A-Z]\w*")
_PLAIN_WORD = re.compile(r"[\w.+-]*")
_CONTAINERS = frozenset((None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"))
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.keyword, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.BinOp, ast.Compare,
    ast.unaryop, ast.operator, ast.cmpop,
)  # fmt: skip


def check_archive(path: Path) -> None:
    """Refuse a `.pt2` that holds pickled objects, compiled code, or text that would be evaluated.

    Raises:
        InvalidArgument: It is no program saved with ``torch.export.save``, or holds such a thing.
    """
    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
        program = json.loads(reader.read_bytes("models/model.json"))
        constants = json.loads(reader.read_bytes(_CONSTANTS_FILE))
    except (RuntimeError, AssertionError, ValueError, OSError) as error:
        raise InvalidArgument(
            f"{path.name}: expected a program saved with torch.export.save of torch 2.8 or newer: {_first_line(error)}"
        ) from error
    foreign = sorted(name for name in names if name not in _ALLOWED_FILES and not name.startswith(_ALLOWED_FOLDERS))
    if foreign:
        raise InvalidArgument(f"{path.name}: expected one exported program, got {foreign[0]!r} in it as well")
    for constant in constants.get("config", {}).values():
        if not str(constant.get("path_name")).startswith(_TENSOR_PREFIX):
            raise InvalidArgument(f"{path.name}: a constant is a pickled object ({constant.get('path_name')}); refused")
    for problem in _problems(program):
        raise InvalidArgument(f"{path.name}: {problem}; refused, for it would be evaluated as code")


def _problems(program: Any) -> Iterator[str]:
    for key, value in _items(program):
        if key == "expr_str" and not _is_plain_expression(value):
            yield f"{str(value)[:80]!r} is no plain size expression"
        elif key in ("in_spec", "out_spec", "treespec") and not _is_plain_treespec(value):
            yield f"{str(value)[:80]!r} is no plain structure of tuples, lists and dicts"
        elif key == "nodes" and isinstance(value, list):
            for node in value:
                target = node.get("target") if isinstance(node, dict) else None
                if not isinstance(target, str) or not _TARGET.fullmatch(target) or target.startswith(_READS_FILES):
                    yield f"operator {str(target)[:80]!r} is none of ATen's"


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _items(item)
    elif isinstance(value, list):
        for item in value:
            yield from _items(item)


def _is_plain_expression(text: Any) -> bool:
    """Tell whether sympy can evaluate a text without running anything: constructors, numbers and symbols only."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, TypeError, RecursionError):
        return False
    for node in nodes:
        if not isinstance(node, _EXPRESSION_NODES):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and _SYMPY_CONSTRUCTOR.fullmatch(node.func.id)
        ):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            return False
        # sympy evaluates strings inside a constructor again.
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _PLAIN_WORD.fullmatch(node.value):
            return False
    return True


def _is_plain_treespec(text: Any) -> bool:
    try:
        return _is_plain_structure(json.loads(text)[1])
    except (ValueError, TypeError, KeyError, IndexError):
        return False


def _is_plain_structure(node: Any) -> bool:
    context = json.loads(node["context"]) if isinstance(node["context"], str) else node["context"]
    plain_context = context is None or (
        isinstance(context, list) and all(isinstance(key, str | int | float) for key in context)
    )
    return (
        node["type"] in _CONTAINERS
        and plain_context
        and all(_is_plain_structure(child) for child in node["children_spec"])
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
