import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?:(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})?", re.ASCII)


def expanded(text: str, *, environment: Mapping[str, str]) -> str:
    """Replace `${NAME}` and `${NAME:-default}` by the environment's values; `$${` stands for `${`.

    As in a shell, the default also replaces an empty value.

    Raises:
        ValueError: The variable is not set and has no default, or the reference is not written as above.
    """

    def value(reference: re.Match[str]) -> str:
        if reference["escaped"]:
            return "${"
        name, default = reference["name"], reference["default"]
        if name is None:
            raise ValueError(f"expected ${{NAME}} or ${{NAME:-default}} (write $${{ for a plain ${{), got {text!r}")
        if default is not None:
            return environment.get(name) or default
        if name not in environment:
            raise ValueError(
                f"expected the environment variable {name} to be set; set it, or write ${{{name}:-default}}"
            )
        return environment[name]

    return _REFERENCE.sub(value, text)


def escaped(value: Any) -> Any:
    """Return plain data from which `expanded` makes the same again."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return {key: escaped(each) for key, each in value.items()}
    return [escaped(each) for each in value] if isinstance(value, list) else value
