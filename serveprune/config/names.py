from typing import Annotated

from pydantic import Field

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
"""What can stand in a URL, a metric label and a folder name; `@` divides model from tier."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""Name of a model, a tier or a version."""
