"""What a request to load or unload a model may say beside its name."""

from collections.abc import Mapping
from typing import Any

from serveprune.errors import InvalidArgument, Unimplemented

_WITHOUT_MEANING = "unload_dependents"
"""Clients send it with every unload; no model depends on another one here."""


def expect_no_overrides(parameters: Any, *, loads: bool) -> None:
    """Refuse parameters that would have another model loaded than lies in the repository.

    Raises:
        InvalidArgument: They are no mapping.
        Unimplemented: There are any.
    """
    if parameters is None:
        return
    if not isinstance(parameters, Mapping):
        raise InvalidArgument("repository: parameters: expected an object, got something else")
    unknown = sorted(name for name in parameters if loads or name != _WITHOUT_MEANING)
    if unknown:
        raise Unimplemented(
            f"parameter {unknown[0][:100]!r} is not supported: what is loaded is what lies in the model repository; "
            "put a serveprune.yaml beside the model"
        )
