from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from serveprune.oip.tensor import Array, TensorSpec


class Preprocessor(Protocol):
    """Turns what people have (texts, pictures) into what a graph takes.

    Calls may come from several threads at once.
    """

    @property
    def kind(self) -> Literal["text", "image"]:
        """What the elements hold."""
        ...

    @property
    def input(self) -> TensorSpec:
        """The BYTES input clients may send instead of the targets, shape ``(-1,)``."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """The graph inputs it fills."""
        ...

    @property
    def padding(self) -> Mapping[str, int]:
        """Graph input -> value that lengthens axis 1 without changing the answer.

        Empty where rows of different length cannot be computed together.
        """
        ...

    def __call__(self, values: Sequence[bytes]) -> dict[str, Array]:
        """Return one array per target, batch axis first, one row per element.

        Raises:
            InvalidArgument: An element cannot be used; the message names its index and the reason.
        """
        ...
