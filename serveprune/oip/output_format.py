from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """Which outputs of one inference the client wants in binary form; the others are JSON.

    Attributes:
        binary: Holds for outputs that ``by_name`` does not mention.
    """

    binary: bool = False
    by_name: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        """Tell whether the output of that name goes in binary form."""
        return self.by_name.get(name, self.binary)
