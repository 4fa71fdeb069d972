from collections.abc import Iterator, Mapping
from pathlib import Path

from serveprune.errors import FailedPrecondition
from serveprune.oip.tensor import Array
from serveprune.preprocessing.protocol import Preprocessor


class PictureSample(Mapping[str, Array]):
    """One sample whose picture is read and decoded each time it is asked for, so that a set of them takes no memory.

    Attributes:
        shapes: Graph input -> shape of its array, known without decoding.
    """

    def __init__(
        self, file: Path, preprocessor: Preprocessor, *, shapes: Mapping[str, tuple[int, ...]], others: dict[str, Array]
    ) -> None:
        """Remember where the picture is.

        Args:
            file: PNG or JPEG, decoded successfully before, or like one that was.
            preprocessor: Turns it into arrays.
            shapes: Of the arrays that the preprocessor makes of any picture.
            others: Arrays for other graph inputs.
        """
        self._file = file
        self._preprocessor = preprocessor
        self._others = others
        self.shapes = {**shapes, **{name: array.shape for name, array in others.items()}}

    def __getitem__(self, name: str) -> Array:
        if name in self._others:
            return self._others[name]
        try:
            content = self._file.read_bytes()
        except OSError as error:
            raise FailedPrecondition(f"{self._file} could be read before and cannot any more: {error}") from error
        picture: Array = self._preprocessor([content])[name][0]
        return picture

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # without decoding, which Mapping's own would do

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(sample: Mapping[str, Array]) -> Mapping[str, tuple[int, ...]]:
    """Return graph input -> shape, decoding nothing."""
    return sample.shapes if isinstance(sample, PictureSample) else {name: one.shape for name, one in sample.items()}
