import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from serveprune.config.base import ConfigModel
from serveprune.config.locations import ExistingFile, Locations

_VARIABLE_PATTERN = r"[A-Z_][A-Z0-9_]*"
"""Such names as POSIX keeps for programs; a token, which might stand here by mistake, is hardly ever like that."""
_LONGEST_VARIABLE = 128


def _given(value: Any, info: ValidationInfo) -> Any:
    # Whoever wrote the key wanted something, and `tokens:` with nothing behind it would let everybody in.
    if value is None and isinstance(info.context, Locations):
        raise ValueError("expected a value, got nothing; leave the key out where it is not wanted")
    return value


NeverEmpty = BeforeValidator(_given)
"""Refuses a key of the config file without a value, where that would mean less security than it seems."""


class TlsConfig(ConfigModel):
    """TLS of the HTTP and gRPC endpoints. Files that change are taken up within seconds, without a restart."""

    certificate_file: ExistingFile = Field(
        description="PEM: the server's certificate, followed by those of the authorities between it and the root."
    )
    key_file: ExistingFile = Field(description="PEM: the private key of the certificate, without a passphrase.")
    client_ca_file: Annotated[ExistingFile | None, NeverEmpty] = Field(
        default=None,
        description="PEM: authorities of client certificates. Given: only clients with such a certificate are served.",
    )


def _is_variable(value: Any) -> Any:
    # Whoever writes ${NAME} here has the tokens themselves as the value, which no message may quote.
    if isinstance(value, str) and len(value) <= _LONGEST_VARIABLE and re.fullmatch(_VARIABLE_PATTERN, value):
        return value
    raise ValueError(
        "expected the name of an environment variable, such as SERVEPRUNE_TOKENS in capitals (not its value)"
    )


VariableName = Annotated[
    str,
    StringConstraints(max_length=_LONGEST_VARIABLE),
    BeforeValidator(_is_variable),
    WithJsonSchema({"type": "string", "pattern": f"^{_VARIABLE_PATTERN}$", "maxLength": _LONGEST_VARIABLE}),
]


class TokensConfig(ConfigModel):
    """Bearer tokens, one a line, comments after `#`, from a file, a variable of the environment, or both."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    file: Annotated[ExistingFile | None, NeverEmpty] = Field(
        default=None, description="File with tokens. One that changes is taken up within seconds."
    )
    environment: Annotated[VariableName | None, NeverEmpty] = Field(
        default=None, description="Name of an environment variable that holds tokens; read at the start."
    )

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        # Here, too, what stands there may be a token.
        if not isinstance(value, Mapping | TokensConfig):
            raise ValueError("expected a mapping with the key file or environment, got something else")
        return value

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.file is None and self.environment is None:
            raise ValueError("expected at least one of the keys file and environment, got none")
        return self
