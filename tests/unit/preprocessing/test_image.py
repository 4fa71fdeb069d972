import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serveprune.config.model import ImagePreprocessing
from serveprune.errors import ConfigError, InvalidArgument
from serveprune.oip.datatype import Datatype
from serveprune.oip.tensor import Array, TensorSpec
from serveprune.preprocessing.loading import load_preprocessor
from serveprune.preprocessing.protocol import Preprocessor


def encode(picture: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format_name, **options)
    return stream.getvalue()


def pixels(target: str = "pixels", *, shape: tuple[int, ...] = (-1, 3, -1, -1)) -> TensorSpec:
    return TensorSpec(target, Datatype.FP32, shape)


def load(inputs: Sequence[TensorSpec] | None = None, **options: Any) -> Preprocessor:
    config = ImagePreprocessing(**{"size": (2, 4), **options})
    wanted = inputs if inputs is not None else [pixels(shape=(-1, config.channels, -1, -1))]
    return load_preprocessor(config, folder=Path("unused"), inputs=wanted)


def colours(preprocessor: Preprocessor, value: bytes) -> Array:
    """Return the picture as (H, W, C) integers, as it was before division by 255."""
    array = preprocessor([value])[preprocessor.targets[0]][0]
    integers: Array = np.rint(array.transpose(1, 2, 0) * 255).astype(int)
    return integers


RED_GREEN = Image.fromarray(
    np.array([[[255, 0, 0]] * 4, [[0, 255, 0]] * 4], dtype=np.uint8)
)  # 4 wide, 2 high: red above green


def test_png_becomes_normalised_channels_first_float32() -> None:
    preprocessor = load(mean=(0.5, 0.4, 0.2), std=(0.5, 0.25, 2.0))

    array = preprocessor([encode(RED_GREEN), encode(RED_GREEN)])["pixels"]

    assert array.shape == (2, 3, 2, 4)
    assert array.dtype == np.float32
    # (1 - .5)/.5, (0 - .4)/.25, (0 - .2)/2 above; (0 - .5)/.5, (1 - .4)/.25, (0 - .2)/2 below
    np.testing.assert_allclose(array[1, :, 0, 0], [1.0, -1.6, -0.1], rtol=1e-6)
    np.testing.assert_allclose(array[1, :, 1, 3], [-1.0, 2.4, -0.1], rtol=1e-6)


def test_jpeg_is_decoded_close_to_the_original() -> None:
    grey = Image.new("RGB", (16, 16), (200, 100, 50))

    assert np.abs(colours(load(size=16), encode(grey, "JPEG", quality=95)) - [200, 100, 50]).max() <= 3


def test_preprocessor_describes_itself() -> None:
    preprocessor = load(input="photo")

    assert preprocessor.kind == "image"
    assert preprocessor.input == TensorSpec("photo", Datatype.BYTES, (-1,))
    assert preprocessor.targets == ("pixels",)
    assert preprocessor.padding == {}


def test_resize_is_bilinear_when_picture_is_smaller() -> None:
    ramp = Image.fromarray(np.array([[0, 100]], dtype=np.uint8))

    # Centres of 4 output pixels lie at -.25, .25, .75, 1.25 of the input: clamp, 25 %, 75 %, clamp.
    np.testing.assert_array_equal(colours(load(size=(1, 4), channels=1), encode(ramp))[0, :, 0], [0, 25, 75, 100])


def test_size_is_height_then_width() -> None:
    assert load(size=(3, 5))([encode(RED_GREEN)])["pixels"].shape == (1, 3, 3, 5)


@pytest.mark.parametrize(
    ("picture", "options", "expected"),
    [
        (Image.new("L", (4, 2), 77), {}, [77, 77, 77]),
        (Image.new("1", (4, 2), 1), {}, [255, 255, 255]),
        (Image.new("LA", (4, 2), (77, 10)), {}, [77, 77, 77]),
        (Image.new("RGBA", (4, 2), (10, 20, 30, 128)), {}, [10, 20, 30]),
        (Image.new("RGB", (4, 2), (10, 20, 30)).quantize(4), {}, [10, 20, 30]),
        (Image.new("RGB", (4, 2), (10, 20, 30)).quantize(4), {"transparency": bytes([0, 128])}, [10, 20, 30]),
        (Image.new("RGB", (4, 2), (10, 20, 30)), {"transparency": (10, 20, 30)}, [10, 20, 30]),
        (Image.fromarray(np.full((2, 4), 32768, np.uint16)), {}, [128, 128, 128]),
        (Image.fromarray(np.full((2, 4), 65535, np.uint16)), {}, [255, 255, 255]),
    ],
    ids=["grey", "bits", "grey-alpha", "alpha", "palette", "palette-alpha", "colour-key", "16-bit", "16-bit-white"],
)
def test_png_becomes_rgb_whatever_its_mode(picture: Image.Image, options: Any, expected: list[int]) -> None:
    np.testing.assert_array_equal(colours(load(), encode(picture, **options))[1, 2], expected)


def test_16_bit_rgb_png_becomes_8_bit() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0) * 4
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")

    np.testing.assert_array_equal(colours(load(), png)[0, 0], [255, 128, 0])


def test_cmyk_jpeg_becomes_rgb() -> None:
    cyan = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)

    assert np.abs(colours(load(size=16), cyan)[8, 8] - [0, 255, 255]).max() <= 3


def test_colour_becomes_luma_when_graph_takes_one_channel() -> None:
    # ITU-R 601: 0.299 * 255 and 0.587 * 255
    np.testing.assert_array_equal(colours(load(channels=1), encode(RED_GREEN))[:, 0, 0], [76, 150])


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (5, (0, 0)), (6, (0, 1)), (7, (1, 1)), (8, (1, 0))],
)
@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int], format_name: str) -> None:
    stored = np.zeros((16, 32), dtype=np.uint8)
    stored[:8, :16] = 255  # the stored upper left quarter is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright_size = (32, 16) if orientation >= 5 else (16, 32)

    value = encode(Image.fromarray(stored), format_name, exif=exif)
    upright = colours(load(size=upright_size, channels=1), value)[:, :, 0]

    height, width = upright_size
    quarters = upright.reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == corner
    assert quarters[corner] > 250
    assert quarters.sum() < 260


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b"Exif\0\0zzzz", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_picture_is_used_without_a_warning_when_its_exif_is_corrupt(exif: bytes, format_name: str) -> None:
    value = encode(Image.new("L", (16, 16), 90), format_name, exif=exif)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = colours(load(size=16), value)

    assert np.abs(result - 90).max() <= 2
    assert caught == []


def test_first_picture_is_used_when_jpeg_holds_several() -> None:
    first, second = Image.new("L", (16, 16), 50), Image.new("L", (16, 16), 200)
    value = encode(first, "MPO", save_all=True, append_images=[second])

    assert value.startswith(b"\xff\xd8\xff")
    assert np.abs(colours(load(size=16), value) - 50).max() <= 2


def png_with_size(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that its data does not hold."""
    value = bytearray(encode(Image.new("L", (4, 4))))
    value[16:24] = struct.pack(">II", width, height)
    value[29:33] = struct.pack(">I", zlib.crc32(bytes(value[12:29])))
    return bytes(value)


ANIMATED = encode(RED_GREEN, save_all=True, append_images=[RED_GREEN.rotate(180)])
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "expected a PNG or JPEG picture, got no bytes"),
        (b"hello, world", "expected a PNG or JPEG picture, got bytes that start with 68 65 6c 6c 6f 2c 20 77"),
        (encode(RED_GREEN, "GIF"), "expected a PNG or JPEG picture, got bytes that start with 47 49 46"),
        (encode(RED_GREEN, "BMP"), "expected a PNG or JPEG picture"),
        (encode(RED_GREEN, "WEBP"), "expected a PNG or JPEG picture"),
        (encode(NOISE)[:2000], "this PNG picture cannot be decoded: "),
        (encode(NOISE, "JPEG")[:1500], "this JPEG picture cannot be decoded: .*truncated"),
        (encode(NOISE)[:20], "this PNG picture cannot be decoded: "),
        (encode(NOISE, "JPEG")[:20], "this JPEG picture cannot be decoded: "),
        (b"\x89PNG\r\n\x1a\n" + b"\xff\xd8\xff" * 40, "this PNG picture cannot be decoded: "),
        (encode(NOISE)[:100] + b"\0" * 4000, "this PNG picture cannot be decoded: "),
        (ANIMATED, "expected a still picture, got an animated PNG"),
        (png_with_size(4096, 4097), "at most 16777216 pixels, got 4096 x 4097 = 16781312"),
        (png_with_size(10_000, 10_000), "at most 16777216 pixels, "),
        (png_with_size(100_000, 100_000), "at most 16777216 pixels, "),
        (png_with_size(0, 4), "this PNG picture cannot be decoded: "),
    ],
)
def test_picture_is_refused_with_index_and_reason_when_unusable(value: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"input 'image_bytes', element 1: .*{message}"):
        load()([encode(RED_GREEN), value])


def test_pixels_are_counted_before_decoding() -> None:
    # The data behind this header cannot be decoded, so only the header can be the reason.
    value = png_with_size(11, 10)

    with pytest.raises(InvalidArgument, match="at most 100 pixels, got 11 x 10 = 110"):
        load(max_pixels=100)([value])
    with pytest.raises(InvalidArgument, match="cannot be decoded"):
        load(max_pixels=110)([value])


def test_empty_batch_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'image_bytes': expected at least one picture, got none"):
        load()([])


def test_results_are_right_when_called_from_many_threads() -> None:
    preprocessor = load(size=8)
    values = [encode(NOISE.rotate(index), ("PNG", "JPEG")[index % 2]) for index in range(64)]
    expected = [preprocessor([value])["pixels"] for value in values]

    with ThreadPoolExecutor(8) as executor:
        results = list(executor.map(lambda value: preprocessor([value])["pixels"], values))

    np.testing.assert_array_equal(results, expected)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([pixels(shape=(-1, 1, 2, 4))], {}, r"makes FP32 \[-1, 3, 2, 4\].*graph input pixels is FP32 \[-1, 1, 2, 4\]"),
        ([pixels(shape=(-1, 2, 4, 3))], {}, "batch, channels, height, width"),
        ([TensorSpec("pixels", Datatype.UINT8, (-1, 3, 2, 4))], {}, "is UINT8"),
        ([pixels("a"), pixels("b")], {}, r"target: expected one of the graph inputs \['a', 'b'\], none is named"),
        ([pixels("a"), pixels("b")], {"target": "c"}, "got 'c'"),
    ],
)
def test_loading_is_refused_when_preprocessing_and_graph_do_not_fit(
    inputs: list[TensorSpec], options: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(inputs, **options)


def test_named_target_is_filled_when_graph_has_several_inputs() -> None:
    assert load([pixels("a"), pixels("b")], target="b").targets == ("b",)
