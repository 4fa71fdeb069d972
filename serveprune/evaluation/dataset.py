import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from serveprune.config.model import DatasetConfig
from serveprune.errors import ConfigError
from serveprune.evaluation.dataset_content import DatasetContent
from serveprune.evaluation.jsonl import read_jsonl
from serveprune.evaluation.npz import read_npz
from serveprune.evaluation.picture_sample import shapes_of
from serveprune.oip.tensor import Array, TensorSpec
from serveprune.preprocessing.protocol import Preprocessor

_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Inputs of one model, one sample each, with what people know about the answers.

    Attributes:
        samples: Graph input name -> array **without** batch axis. Pictures are decoded anew each time.
        labels: ``(N,)`` int64 class of each sample.
        pairs: Indices of two samples, and how alike people found them (any scale).
        padding: Graph input -> value that lengthens axis 0 of a sample without changing its answer.
        most_rows: Most samples in a batch, whoever asks for more; any number by default.
    """

    samples: tuple[Mapping[str, Array], ...]
    labels: Array | None = None
    pairs: tuple[tuple[int, int, float], ...] = ()
    padding: Mapping[str, int] = field(default_factory=dict)
    most_rows: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def length(self, index: int) -> int | None:
        """Return the sample's length along the axis that padding grows; ``None`` if there is none."""
        name = next(iter(self.padding), None)
        return None if name is None else self.samples[index][name].shape[0]

    def batches(self, batch_size: int) -> Iterator[tuple[Array, dict[str, Array]]]:
        """Yield sample indices ``(n,)`` and feeds with batch axis first; every sample occurs once.

        Samples of equal shape share a batch. Where padding says how, samples of different length do as well:
        they are sorted by length, and each batch is padded to its longest.
        """
        for indices in self.chunks(batch_size):
            yield indices, self.collate(indices)

    def typical_batch(self, batch_size: int) -> tuple[Array, dict[str, Array]]:
        """Return the batch in the middle, by length, of those with the most rows; like an item of `batches`."""
        chunks = list(self.chunks(batch_size))
        most = max(map(len, chunks))
        full = [chunk for chunk in chunks if len(chunk) == most]
        indices = full[len(full) // 2]
        return indices, self.collate(indices)

    def collate(self, indices: Sequence[int] | Array) -> dict[str, Array]:
        """Stack samples along a new batch axis, padded to the longest of them."""
        rows = [self.samples[index] for index in indices]
        return {name: self._stack(name, [row[name] for row in rows]) for name in rows[0]}

    def select(self, indices: Sequence[int]) -> "Dataset":
        """Return the named samples in that order; pairs stay where both samples do."""
        positions = {old: new for new, old in enumerate(indices)}
        return replace(
            self,
            samples=tuple(self.samples[index] for index in indices),
            labels=None if self.labels is None else self.labels[np.asarray(indices, dtype=np.int64)],
            pairs=tuple(
                (positions[first], positions[second], score)
                for first, second, score in self.pairs
                if first in positions and second in positions
            ),
        )

    def head(self, count: int) -> "Dataset":
        """Return the first samples, all if there are fewer."""
        return self.select(range(min(count, len(self))))

    def split(self, fraction: float) -> tuple["Dataset", "Dataset"]:
        """Return a part with that fraction of the different samples, and the rest; always the same ones.

        They are drawn at random, because files are often sorted by class. Equal samples go to the same part. Each
        part has at least one sample.

        Raises:
            ConfigError: There are fewer than two different samples.
        """
        digests = self.digests()
        different = list(dict.fromkeys(digests))
        if len(different) < 2:
            raise ConfigError([f"expected at least 2 different samples to split, got {len(different)}"])
        count = min(max(round(len(different) * fraction), 1), len(different) - 1)
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(different)).tolist()
        first = {different[position] for position in order[:count]}
        return (
            self.select([index for index, digest in enumerate(digests) if digest in first]),
            self.select([index for index, digest in enumerate(digests) if digest not in first]),
        )

    def digests(self) -> list[bytes]:
        """Return what tells samples apart: equal for equal inputs, whatever is known about the answers."""
        return [_digest(sample) for sample in self.samples]

    def chunks(self, batch_size: int) -> Iterator[Array]:
        """Yield the sample indices ``(n,)`` of each item of `batches`."""
        batch_size = min(batch_size, self.most_rows or batch_size)
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, sample in enumerate(self.samples):
            # Axis 0 of padded inputs does not matter.
            shapes = shapes_of(sample).items()
            shape = tuple((name, sizes[1:] if name in self.padding else sizes) for name, sizes in shapes)
            groups.setdefault(shape, []).append(index)
        for indices in groups.values():
            ordered = sorted(indices, key=lambda index: self.length(index) or 0)
            for start in range(0, len(ordered), batch_size):
                yield np.array(ordered[start : start + batch_size], dtype=np.int64)

    def _stack(self, name: str, rows: Sequence[Array]) -> Array:
        if name not in self.padding:
            return np.stack(rows)
        length = max(row.shape[0] for row in rows)
        stacked = np.full((len(rows), length, *rows[0].shape[1:]), self.padding[name], dtype=rows[0].dtype)
        for target, row in zip(stacked, rows, strict=True):
            target[: row.shape[0]] = row
        return stacked


def _digest(sample: Mapping[str, Array]) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(sample.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def load_dataset(
    config: DatasetConfig,
    *,
    inputs: Sequence[TensorSpec],
    preprocessor: Preprocessor | None,
    pictures_decoded: int | None = None,
) -> Dataset:
    """Read a calibration or evaluation set and check it against the graph's inputs.

    ``.npz``: one array per graph input with the batch axis first, optionally ``label`` ``(N,)`` of integers.
    ``.jsonl``, one object per line: ``{"text": ...}``, ``{"image": "file relative to this one"}`` or
    ``{"inputs": {name: nested list}}``, each optionally with ``"label": int``; or a scored pair
    ``{"text": a, "paired_text": b, "score": 0.7}``.

    Args:
        config: The file, and how much of it is used.
        inputs: What the graph takes.
        preprocessor: Of the model, if it has one.
        pictures_decoded: Decode so many pictures to see whether they can be; the others only have to exist.
            Default: all.

    Raises:
        ConfigError: With everything that is wrong: the file, the line or array, what was expected, what came.
    """
    content = _read(config, inputs=inputs, preprocessor=preprocessor, pictures_decoded=pictures_decoded)
    padding = {} if preprocessor is None else dict(preprocessor.padding)
    problems = [*content.problems, *_length_problems(content, padding, config)]
    if not problems and not content.samples:
        problems = [f"{config.file}: expected at least one sample, got none"]
    if problems:
        raise ConfigError(_bounded(problems))
    labels = np.array(content.labels, dtype=np.int64) if content.labels else None
    return Dataset(tuple(content.samples), labels=labels, pairs=tuple(content.pairs), padding=padding)


def _read(
    config: DatasetConfig,
    *,
    inputs: Sequence[TensorSpec],
    preprocessor: Preprocessor | None,
    pictures_decoded: int | None,
) -> DatasetContent:
    if not config.file.is_file():
        raise ConfigError([f"{config.file}: expected a file, there is none"])
    if config.file.suffix == ".npz":
        return read_npz(config.file, inputs=inputs, samples=config.samples)
    return read_jsonl(
        config.file,
        inputs=inputs,
        preprocessor=preprocessor,
        samples=config.samples,
        pictures_decoded=pictures_decoded,
    )


def _length_problems(content: DatasetContent, padding: Mapping[str, int], config: DatasetConfig) -> Iterator[str]:
    for index, sample in enumerate(content.samples):
        lengths = {name: sample[name].shape[0] for name in padding if name in sample}
        if len(set(lengths.values())) > 1:
            yield f"{config.file}: sample {index}: expected inputs of one length, got {lengths}"


def _bounded(problems: list[str], *, most: int = 50) -> list[str]:
    """Keep a file that is wrong in every line from flooding the terminal."""
    if len(problems) <= most:
        return problems
    return [*problems[:most], f"... and {len(problems) - most} more problems like these"]
