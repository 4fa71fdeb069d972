import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serveprune.evaluation.dataset_content import DatasetContent, Misfit, class_number, fitted
from serveprune.oip.tensor import Array, TensorSpec

LABEL = "label"


def read_npz(path: Path, *, inputs: Sequence[TensorSpec], samples: int | None) -> DatasetContent:
    """Read one array per graph input, and ``label`` if there is one; problems are collected, not raised."""
    content = DatasetContent()
    arrays = _load(path, content)
    if content.problems:
        return content
    names = {spec.name for spec in inputs}
    for name in sorted(arrays.keys() - names - {LABEL}):
        content.problems.append(f"{path}: array {name!r}: expected one of {sorted({*names, LABEL})}")
    columns = {}
    for spec in inputs:
        if spec.name not in arrays:
            content.problems.append(f"{path}: expected an array {spec.name!r} for the graph input, there is none")
            continue
        try:
            columns[spec.name] = fitted(arrays[spec.name], spec, batched=True)
        except Misfit as error:
            content.problems.append(f"{path}: array {spec.name!r}: {error}")
    labels = _labels(path, arrays, content) if LABEL in arrays and LABEL not in names else None
    sizes = {name: len(column) for name, column in columns.items()}
    if labels is not None:
        sizes[LABEL] = len(labels)
    if len(set(sizes.values())) > 1:
        content.problems.append(f"{path}: expected arrays with the same number of samples, got {sizes}")
    if not content.problems:
        count = min(sizes.values()) if samples is None else min(samples, *sizes.values())
        content.samples = [{name: column[index] for name, column in columns.items()} for index in range(count)]
        content.labels = [] if labels is None else labels[:count]
    return content


def _load(path: Path, content: DatasetContent) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    try:
        # Opened here: numpy leaves a file that it opened itself, and then refused, open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except (ValueError, zlib.error, zipfile.BadZipFile, OSError) as error:
                    content.problems.append(f"{path}: array {name!r}: expected plain numbers, {error}")
    except (ValueError, zipfile.BadZipFile, OSError, AttributeError, TypeError, EOFError) as error:
        # A .npy in disguise gives a bare array, which has no context manager.
        content.problems.append(f"{path}: expected an archive of arrays as numpy.savez writes it, {error}")
    return arrays


def _labels(path: Path, arrays: dict[str, Array], content: DatasetContent) -> list[int] | None:
    array = arrays[LABEL]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        content.problems.append(
            f"{path}: array {LABEL!r}: expected integers of shape (*), got {array.dtype} of shape {array.shape}"
        )
        return None
    try:
        return [class_number(value) for value in array]
    except Misfit as error:
        content.problems.append(f"{path}: array {LABEL!r}: {error}")
        return None
