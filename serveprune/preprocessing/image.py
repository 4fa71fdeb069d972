import io
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image

from serveprune.config.model import ImagePreprocessing
from serveprune.errors import ConfigError, InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import DYNAMIC, Array, TensorSpec

_log = logging.getLogger(__name__)

_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# `warnings.catch_warnings` changes state of the whole process.
_warnings_lock = threading.Lock()


class ImagePreprocessor:
    """PNG and JPEG to ``(N, C, H, W)`` float32: upright by EXIF, resized, divided by 255, normalised.

    What every training script's ``Image.open(file).convert("RGB")`` does is done here as well: transparency is
    dropped, palettes are looked up, CMYK becomes RGB, grey is repeated over the channels (or, for one channel,
    colours become ITU-R 601 luma). 16-bit grey is scaled to 8 bit. Resizing is bilinear with antialiasing.
    """

    kind: Literal["image"] = "image"

    def __init__(self, config: ImagePreprocessing, *, inputs: Sequence[TensorSpec]) -> None:
        self._config = config
        height, width = (config.size, config.size) if isinstance(config.size, int) else config.size
        self._height, self._width = height, width
        self._mode = "L" if config.channels == 1 else "RGB"
        self._mean = np.array(config.mean, dtype=np.float32).reshape(-1, 1, 1)
        self._std = np.array(config.std, dtype=np.float32).reshape(-1, 1, 1)
        self.targets = (_target(config, (DYNAMIC, config.channels, height, width), inputs=inputs).name,)
        self.input = TensorSpec(config.input, Datatype.BYTES, (DYNAMIC,))
        self.padding: Mapping[str, int] = {}

    def __call__(self, values: Sequence[bytes]) -> dict[str, Array]:
        """See `Preprocessor.__call__`; the one array is ``(N, C, H, W)`` float32."""
        if not values:
            raise InvalidArgument(f"input {self.input.name!r}: expected at least one picture, got none")
        batch = np.empty((len(values), self._config.channels, self._height, self._width), dtype=np.float32)
        for index, value in enumerate(values):
            try:
                batch[index] = self._tensor(value)
            except InvalidArgument as error:
                message = f"input {self.input.name!r}, element {index}: {error.message}"
                raise InvalidArgument(message) from error
        return {self.targets[0]: batch}

    def _tensor(self, value: bytes) -> Array:
        """Return one picture as ``(C, H, W)`` float32."""
        picture = self._decode(value)
        if picture.size != (self._width, self._height):
            picture = picture.resize((self._width, self._height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float32).reshape(self._height, self._width, -1)
        normalised: Array = (pixels.transpose(2, 0, 1) / np.float32(255) - self._mean) / self._std
        return normalised

    def _decode(self, value: bytes) -> Image.Image:
        """Return the upright picture in mode L or RGB."""
        format_name = _format(value)
        try:
            with _quiet_pillow():
                picture = Image.open(io.BytesIO(value), formats=("PNG", "JPEG"))
            self._check_header(picture)
            picture.load()
            flat = _convert(picture, self._mode)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise InvalidArgument(f"expected at most {self._config.max_pixels} pixels, {error}") from error
        except InvalidArgument:
            raise
        except Exception as error:  # on hostile bytes the decoders raise a dozen unrelated types
            raise InvalidArgument(f"this {format_name} picture cannot be decoded: {error}") from error
        turn = _UPRIGHT.get(_orientation(picture))
        return flat if turn is None else flat.transpose(turn)

    def _check_header(self, picture: Image.Image) -> None:
        """Refuse by what the header says, before a byte of the picture is decompressed."""
        width, height = picture.size
        if width * height > self._config.max_pixels:
            raise InvalidArgument(
                f"expected at most {self._config.max_pixels} pixels, got {width} x {height} = {width * height}; "
                "send a smaller picture"
            )
        # A JPEG with several pictures (MPO: stereo, depth map) is a still of its first one; an APNG is a film.
        if picture.format == "PNG" and getattr(picture, "is_animated", False):
            raise InvalidArgument("expected a still picture, got an animated PNG; send one frame")


def _target(config: ImagePreprocessing, shape: tuple[int, ...], *, inputs: Sequence[TensorSpec]) -> TensorSpec:
    names = [spec.name for spec in inputs]
    if config.target is None and len(inputs) != 1:
        raise ConfigError([f"preprocessing.target: expected one of the graph inputs {names}, none is named"])
    wanted = config.target or names[0]
    spec = next((spec for spec in inputs if spec.name == wanted), None)
    if spec is None:
        raise ConfigError([f"preprocessing.target: expected one of the graph inputs {names}, got {wanted!r}"])
    fits = len(spec.shape) == len(shape) and all(
        DYNAMIC in (have, want) or have == want for have, want in zip(spec.shape, shape, strict=True)
    )
    if spec.datatype is not Datatype.FP32 or not fits:
        problem = (
            f"preprocessing: makes FP32 {list(shape)} (batch, channels, height, width), graph input {wanted} is "
            f"{spec.datatype} {list(spec.shape)}"
        )
        raise ConfigError([problem])
    return spec


def _format(value: bytes) -> str:
    found = next((name for magic, name in _MAGIC.items() if value.startswith(magic)), None)
    if found is None:
        start = f"bytes that start with {value[:8].hex(' ')}" if value else "no bytes"
        raise InvalidArgument(f"expected a PNG or JPEG picture, got {start}")
    return found


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence warnings about metadata; a warning about too many pixels is an error."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none that can be read."""
    try:
        with _quiet_pillow():
            orientation = picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises anything on broken metadata; the picture itself was decoded well
        _log.debug("unreadable EXIF data, the picture is taken as upright", exc_info=True)
        return 1
    return orientation if isinstance(orientation, int) else 1


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Pillow's own conversion cuts everything above 255 off instead of scaling.
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
        picture = Image.fromarray(grey.astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        # Directly to RGB or L Pillow warns; the colours are the same.
        picture = picture.convert("RGBA")
    return picture.convert(mode)
