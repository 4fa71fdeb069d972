"""Fashion-MNIST from Debian's package, in the demo's own input format."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for a script's folder, not ours, is on the path

from deploy.demo.train_fashion_network import HOW_TO_GET_THE_DATA, normalise, read_split

__all__ = ["HOW_TO_GET_THE_DATA", "write_images"]


def write_images(folder: Path, data: Path, *, split: str, samples: int, labelled: bool = True) -> Path:
    """Write the first images of a split as a set of inputs, and return its file.

    Args:
        folder: Where it is written.
        data: Folder of the four idx.gz files.
        split: ``train`` or ``t10k``.
        samples: How many.
        labelled: Whether their classes are written too.
    """
    images = read_split(data, split)
    path = folder / f"fashion_{split}.npz"
    pixels = normalise(images.pixels[:samples])
    if labelled:
        np.savez(path, image=pixels, label=images.labels[:samples])
    else:
        np.savez(path, image=pixels)
    return path
